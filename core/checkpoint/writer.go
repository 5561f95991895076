package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Options says where and how a checkpoint is written.
type Options struct {
	Dir       string
	Recipe    string // hash of everything the tensors' values depend on
	Overwrite bool   // the folder may hold files: its weights and side files go, the rest stays
	Resume    bool   // continue a killed write of the same recipe, if there is one
	Volatile  bool   // do not wait for the disk: a killed process loses nothing, a power cut may lose all
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
	volatile  bool
	syncBytes int64
	made      bool // the folder is ours to remove
	files     []*File
	tensors   []*Tensor
	journal   *journal

	mu           sync.Mutex
	done         map[string]bool
	notes        map[string]string // on tensors that are done or pending
	pending      []*Tensor         // done, not yet recorded
	pendingBytes int64
	side         []string // staged side files
	commit       *commit  // not nil once recorded
}

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
	w := &Writer{dir: o.Dir, plan: plan, overwrite: o.Overwrite, volatile: o.Volatile, syncBytes: o.SyncBytes,
		done: map[string]bool{}, notes: map[string]string{}, made: !exists(o.Dir)}
	if w.syncBytes <= 0 {
		w.syncBytes = 1 << 30
	}
	if w.volatile {
		w.syncBytes = 1 // recording costs nothing
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, system("write", o.Dir, err)
	}
	var records []record
	var err error
	if w.journal, records, err = openJournal(o.Dir, o.Volatile); err != nil {
		return nil, errors.Join(err, w.removeMade())
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

// refuseExisting wants a folder with nothing of anybody else's in it.
func (w *Writer) refuseExisting() error {
	if w.overwrite {
		return nil
	}
	items, err := os.ReadDir(w.dir)
	if err != nil {
		return system("write", w.dir, err)
	}
	for _, item := range items {
		if name := item.Name(); name != journalName && !isPartial(name) {
			return &Error{Op: "write", File: w.dir, Reason: "already holds " + name, Hint: "write to an empty folder, or ask for overwriting", Err: ErrExists}
		}
	}
	return nil
}

// Tensors lists every tensor to be filled, by file, then offset.
func (w *Writer) Tensors() []*Tensor { return w.tensors }

// Completed reports whether the journal says that the tensor's bytes are on the disk.
func (w *Writer) Completed(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done[name]
}

// Note is what DoneWith was told of a tensor, in this run or the one it resumed.
func (w *Writer) Note(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.notes[name]
}

// Done says that all bytes of t are written, by whichever process. It waits for
// the disk once per Options.SyncBytes.
func (w *Writer) Done(t *Tensor) error { return w.DoneWith(t, "") }

// DoneWith is Done with a note for whoever resumes the write.
func (w *Writer) DoneWith(t *Tensor, note string) error {
	if t.Size > 0 && !w.volatile { // 0 would mean the rest of the file
		// The disk begins to work now, so that there is less to wait for later. This is
		// advice: whether the bytes have arrived is what sync asks.
		_ = unix.SyncFileRange(t.File.FD(), t.Offset, t.Size, unix.SYNC_FILE_RANGE_WRITE)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if note != "" {
		w.notes[t.Name] = note
	}
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
		if !synced[t.File] && !w.volatile {
			// The kernel finds pages dirtied through any mapping of the file, in any process.
			if err := unix.Fdatasync(t.File.FD()); err != nil {
				return system("write", t.File.Path, err)
			}
			synced[t.File] = true
		}
		records = append(records, record{Done: t.Name, Note: w.notes[t.Name]})
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

// Abort removes every trace of the write and closes the writer. Once Commit has begun
// there is nothing to go back to: Abort then closes only, and says so.
func (w *Writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.commit != nil {
		begun := &Error{Op: "write", File: w.dir, Reason: "commit has begun", Hint: "resume it and commit", Err: ErrInProgress}
		return errors.Join(begun, w.Close())
	}
	return w.remove()
}
