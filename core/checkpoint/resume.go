package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

func (w *Writer) resume(records []record, o Options) error {
	err := w.matches(records[0], o)
	if err == nil {
		w.replay(records)
		if w.commit == nil {
			err = checkSpace(w.plan, w.dir)
		}
	}
	if err == nil {
		err = w.openShards()
	}
	if err != nil {
		return errors.Join(err, w.Close())
	}
	return nil
}

func (w *Writer) matches(r record, o Options) error {
	e := &Error{Op: "resume", File: w.dir, Err: ErrInProgress}
	switch {
	case !o.Resume:
		e.Reason, e.Hint = "holds an unfinished write", "resume it, or overwrite it"
	case r.Version != journalVersion:
		e.Reason, e.Hint = fmt.Sprintf("the journal has version %d, want %d", r.Version, journalVersion), "resume with the program that began it, or overwrite it"
	case r.Recipe != o.Recipe:
		e.Reason, e.Hint, e.Err = "the unfinished write here has another recipe", "resume with the recipe that began it, or overwrite it", ErrRecipe
	case r.Plan != w.plan.digest():
		e.Reason, e.Hint, e.Err = "the unfinished write here has other tensors or shards", "resume with the settings that began it, or overwrite it", ErrRecipe
	default:
		return nil
	}
	return e
}

func (w *Writer) replay(records []record) {
	w.overwrite = records[0].Overwrite
	for _, r := range records[1:] {
		if r.Commit != nil {
			w.commit, w.side = r.Commit, slices.Clone(r.Commit.Side)
		} else {
			w.done[r.Done] = true
			if r.Note != "" {
				w.notes[r.Done] = r.Note
			}
		}
	}
}

func (w *Writer) openShards() error {
	w.Reserved = true
	for _, s := range w.plan.Shards {
		f, err := w.openShard(s)
		if err != nil {
			return err
		}
		w.files = append(w.files, f)
		w.tensors = append(w.tensors, f.Tensors...)
	}
	return w.syncDir()
}

// openShard opens an intact file of an earlier run or makes a new one.
func (w *Writer) openShard(s Shard) (*File, error) {
	path := filepath.Join(w.dir, partial(s.Name))
	if w.commit != nil && !exists(path) {
		path = filepath.Join(w.dir, s.Name) // it has its name already
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil && intact(f, s) {
		return newFile(f, path, s.Size, s.header), nil
	}
	if err == nil {
		f.Close()
	}
	for _, spec := range s.Specs {
		if w.done[spec.Name] {
			return nil, &Error{Op: "resume", File: path, Tensor: spec.Name, Reason: "recorded as complete, but the file is gone or damaged", Hint: "discard the unfinished write and start again", Err: ErrMissing}
		}
	}
	return w.makeShard(path, s)
}

func intact(f *os.File, s Shard) bool {
	head := make([]byte, len(s.head))
	info, err := f.Stat()
	if err != nil || info.Size() != s.Size {
		return false
	}
	_, err = f.ReadAt(head, 0)
	return err == nil && bytes.Equal(head, s.head)
}

func (w *Writer) makeShard(path string, s Shard) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, system("write", path, err)
	}
	reserved, err := reserve(f, s.Size)
	w.Reserved = w.Reserved && reserved
	if err == nil {
		_, err = f.WriteAt(s.head, 0)
	}
	if err != nil {
		f.Close()
		return nil, system("write", path, err)
	}
	return newFile(f, path, s.Size, s.header), nil
}
