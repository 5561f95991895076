package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Commit makes the checkpoint visible and removes the one it replaces. In order:
//
//  1. every byte is put on the disk; the journal says that renaming begins;
//  2. the entry points of the old checkpoint (index, model.safetensors) go;
//  3. side files and shards get their names;
//  4. the new entry point gets its name: the checkpoint is visible;
//  5. the old checkpoint's other files go, then the journal.
//
// So a reader finds the old checkpoint, or none, or the new one, and never a mixture.
// Killed anywhere, Commit may be called again after a resume. The writer is closed
// by a Commit that succeeds; after an error it can be resumed, or, before step 2, aborted.
func (w *Writer) Commit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.commit == nil {
		if err := w.prepare(); err != nil {
			return err
		}
	}
	for _, step := range []func() error{w.publish, w.removeStale} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := removeTraces(w.dir); err != nil {
		return err
	}
	return w.Close()
}

// prepare is step 1.
func (w *Writer) prepare() error {
	if err := w.sync(); err != nil {
		return err
	}
	for _, t := range w.tensors {
		if !w.done[t.Name] {
			return &Error{Op: "commit", File: t.File.Path, Tensor: t.Name, Reason: "is not written yet", Hint: "call Done for every tensor first", Err: ErrUnfinished}
		}
	}
	for _, f := range w.files {
		if w.volatile {
			break
		}
		if err := f.f.Sync(); err != nil { // length and blocks too, not only the tensors
			return system("commit", f.Path, err)
		}
	}
	if w.plan.sharded() {
		index, err := w.plan.index()
		if err != nil {
			return err
		}
		if err := w.stage(indexName, index); err != nil {
			return err
		}
	}
	stale, err := w.stale()
	if err != nil {
		return err
	}
	c := &commit{Side: w.side, Stale: stale}
	if err := w.syncDir(); err != nil {
		return err
	}
	if err := w.journal.append(record{Commit: c}); err != nil {
		return err
	}
	w.commit = c
	return nil
}

// stale lists the files of the old checkpoint that the new one does not replace:
// what the old index names, what has a shard's usual name, and side files.
func (w *Writer) stale() ([]string, error) {
	keep := append([]string{w.plan.entryName()}, w.side...)
	for _, s := range w.plan.Shards {
		keep = append(keep, s.Name)
	}
	listed := map[string]bool{}
	if old, err := readIndex(filepath.Join(w.dir, indexName)); err == nil {
		for _, shard := range old.weights {
			listed[shard] = true
		}
	} // a broken old index names nothing; the usual names are found all the same
	items, err := os.ReadDir(w.dir)
	if err != nil {
		return nil, system("commit", w.dir, err)
	}
	stale := []string{}
	for _, item := range items {
		name := item.Name()
		usual, _ := filepath.Match(shardPattern, name)
		entry := name == singleName || name == indexName
		ours := listed[name] || usual || entry || isSideFile(name)
		if ours && !item.IsDir() && !slices.Contains(keep, name) {
			stale = append(stale, name)
		}
	}
	return stale, nil
}

// publish is steps 2 to 4. Once the entry point has its name, only side files that
// a resumed writer has staged again are left to rename.
func (w *Writer) publish() error {
	entry := w.plan.entryName()
	if !exists(filepath.Join(w.dir, partial(entry))) {
		return w.rename(w.side...)
	}
	for _, old := range []string{indexName, singleName} {
		if err := w.unlink(old); err != nil {
			return err
		}
	}
	if err := w.syncDir(); err != nil {
		return err
	}
	names := slices.Clone(w.side)
	for _, s := range w.plan.Shards {
		if s.Name != entry {
			names = append(names, s.Name)
		}
	}
	if err := w.rename(names...); err != nil {
		return err
	}
	return w.rename(entry)
}

// rename gives staged files their names, skips those that have them, and waits for the disk.
func (w *Writer) rename(names ...string) error {
	for _, name := range names {
		err := os.Rename(filepath.Join(w.dir, partial(name)), filepath.Join(w.dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return system("commit", filepath.Join(w.dir, name), err)
		}
	}
	return w.syncDir()
}

func (w *Writer) unlink(name string) error {
	err := os.Remove(filepath.Join(w.dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return system("commit", filepath.Join(w.dir, name), err)
	}
	return nil
}

// removeStale is step 5.
func (w *Writer) removeStale() error {
	for _, name := range w.commit.Stale {
		if err := w.unlink(name); err != nil {
			return err
		}
	}
	return nil
}
