package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// partial is the name of a file until it is committed.
func partial(name string) string { return ".trivium-" + name + ".partial" }

// remove takes back everything, the folder too if the writer has made it.
func (w *Writer) remove() error {
	err := removeTraces(w.dir)
	return errors.Join(err, w.Close(), w.removeMade())
}

func (w *Writer) removeMade() error {
	if !w.made {
		return nil
	}
	return os.Remove(w.dir)
}

// Unfinished reports whether dir holds the journal of a write that was not committed.
func Unfinished(dir string) bool { return exists(filepath.Join(dir, journalName)) }

// Discard removes what a killed writer left in dir. A folder whose commit had begun
// may then hold no loadable checkpoint.
func Discard(dir string) error {
	if !Unfinished(dir) {
		return nil
	}
	j, _, err := openJournal(dir, false)
	if err != nil {
		return err
	}
	return errors.Join(removeTraces(dir), j.close())
}

// removeTraces removes temporary files, then the journal, which owns them.
func removeTraces(dir string) error {
	items, err := os.ReadDir(dir)
	if err != nil {
		return system("write", dir, err)
	}
	for _, item := range items {
		if isPartial(item.Name()) {
			if err := os.Remove(filepath.Join(dir, item.Name())); err != nil {
				return system("write", dir, err)
			}
		}
	}
	if err := os.Remove(filepath.Join(dir, journalName)); err != nil {
		return system("write", dir, err)
	}
	return syncDir(dir)
}

func isPartial(name string) bool {
	return strings.HasPrefix(name, ".trivium-") && strings.HasSuffix(name, ".partial")
}

// syncDir waits until the folder's names are on the disk.
func (w *Writer) syncDir() error {
	if w.volatile {
		return nil
	}
	return syncDir(w.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return system("write", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return system("write", dir, err)
	}
	return nil
}
