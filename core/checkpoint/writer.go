package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Options says where and how a checkpoint is written.
type Options struct {
	Dir       string
	Recipe    string // hash of everything the tensors' values depend on
	Overwrite bool   // replace a checkpoint that is there
	Resume    bool   // continue a killed write of the same recipe, if there is one
	SyncBytes int64  // record completed tensors after this many bytes; 0 means 1 GiB
}

// Writer holds a checkpoint that is being written: files of their final size under
// temporary names in the target folder. Others fill the tensors through the
// descriptors and say Done; nothing is visible before Commit. A killed writer can
// be taken up with Options.Resume. Safe for concurrent use.
type Writer struct {
	Reserved bool // the file system has set the disk blocks aside

	dir       string
	plan      *Plan
	overwrite bool
	syncBytes int64
	made      bool // the folder is ours to remove
	files     []*File
	tensors   []*Tensor
	journal   *journal

	mu           sync.Mutex
	done         map[string]bool
	pending      []*Tensor // done, not yet recorded
	pendingBytes int64
	side         []string // staged side files
	commit       *commit  // not nil once recorded
}

func partial(name string) string { return ".trivium-" + name + ".partial" }

// Create reserves the space of all files and writes their headers. With
// Options.Resume, and a journal of the same recipe in the folder, it goes on from
// there. The caller ends with Commit or Abort, or with Close to leave the work for
// a later resume.
func Create(plan *Plan, o Options) (*Writer, error) {
	if !exists(filepath.Join(o.Dir, journalName)) {
		if err := checkSpace(plan, o.Dir); err != nil {
			return nil, err
		}
	}
	w := &Writer{dir: o.Dir, plan: plan, overwrite: o.Overwrite, syncBytes: o.SyncBytes, done: map[string]bool{}, made: !exists(o.Dir)}
	if w.syncBytes <= 0 {
		w.syncBytes = 1 << 30
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, system("write", o.Dir, err)
	}
	var records []record
	var err error
	if w.journal, records, err = openJournal(o.Dir); err != nil {
		return nil, err
	}
	if len(records) > 0 {
		err = w.resume(records, o)
	} else {
		err = w.start(o)
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Writer) start(o Options) error {
	err := w.refuseExisting()
	if err == nil {
		err = w.journal.append(record{Version: journalVersion, Recipe: o.Recipe, Plan: w.plan.digest(), Overwrite: o.Overwrite})
	}
	if err == nil {
		err = w.openShards()
	}
	if err != nil {
		return errors.Join(err, w.remove())
	}
	return nil
}

func (w *Writer) refuseExisting() error {
	if w.overwrite {
		return nil
	}
	items, err := os.ReadDir(w.dir)
	if err != nil {
		return system("write", w.dir, err)
	}
	for _, item := range items {
		if name := item.Name(); strings.Contains(name, ".safetensors") && !isPartial(name) || isSideFile(name) {
			return &Error{Op: "write", File: w.dir, Reason: "already holds " + name, Hint: "write to an empty folder, or ask for overwriting", Err: ErrExists}
		}
	}
	return nil
}

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
		e.Reason, e.Hint = "holds an unfinished write", "resume it, or discard it first"
	case r.Version != journalVersion:
		e.Reason, e.Hint = fmt.Sprintf("the journal has version %d, want %d", r.Version, journalVersion), "resume with the program that began it, or discard it first"
	case r.Recipe != o.Recipe:
		e.Reason, e.Hint, e.Err = "the unfinished write here has another recipe", "resume with the recipe that began it, or discard it first", ErrRecipe
	case r.Plan != w.plan.digest():
		e.Reason, e.Hint, e.Err = "the unfinished write here has other tensors or shards", "resume with the settings that began it, or discard it first", ErrRecipe
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
	return syncDir(w.dir)
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

// Tensors lists every tensor to be filled, by file, then offset.
func (w *Writer) Tensors() []*Tensor { return w.tensors }

// Completed reports whether the journal says that the tensor's bytes are on the disk.
func (w *Writer) Completed(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done[name]
}

// Done says that all bytes of t are written, by whichever process. It waits for
// the disk once per Options.SyncBytes.
func (w *Writer) Done(t *Tensor) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = append(w.pending, t)
	w.pendingBytes += t.Size
	if w.pendingBytes < w.syncBytes {
		return nil
	}
	return w.sync()
}

// Sync puts every tensor that is Done on the disk and into the journal.
func (w *Writer) Sync() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sync()
}

func (w *Writer) sync() error {
	if len(w.pending) == 0 {
		return nil
	}
	synced := map[*File]bool{}
	records := make([]record, 0, len(w.pending))
	for _, t := range w.pending {
		if !synced[t.File] {
			// The kernel finds pages dirtied through any mapping of the file, in any process.
			if err := unix.Fdatasync(t.File.FD()); err != nil {
				return system("write", t.File.Path, err)
			}
			synced[t.File] = true
		}
		records = append(records, record{Done: t.Name})
	}
	if err := w.journal.append(records...); err != nil {
		return err
	}
	for _, t := range w.pending {
		w.done[t.Name] = true
	}
	w.pending, w.pendingBytes = nil, 0
	return nil
}

// Close lets go of the files and the folder and leaves the work for a resume.
func (w *Writer) Close() error {
	var errs []error
	for _, f := range w.files {
		errs = append(errs, f.Close())
	}
	w.files = nil
	if w.journal != nil {
		errs = append(errs, w.journal.close())
		w.journal = nil
	}
	return errors.Join(errs...)
}

// Abort removes every trace of the write. Once Commit has begun there is nothing
// to go back to, and Abort refuses.
func (w *Writer) Abort() error {
	if w.commit != nil {
		return &Error{Op: "write", File: w.dir, Reason: "commit has begun", Hint: "resume it and commit", Err: ErrInProgress}
	}
	return w.remove()
}

func (w *Writer) remove() error {
	err := removeTraces(w.dir)
	err = errors.Join(err, w.Close())
	if w.made {
		err = errors.Join(err, os.Remove(w.dir))
	}
	return err
}

// Discard removes what a killed writer left in dir. A folder whose commit had begun
// may then hold no loadable checkpoint.
func Discard(dir string) error {
	if !exists(filepath.Join(dir, journalName)) {
		return nil
	}
	j, _, err := openJournal(dir)
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
