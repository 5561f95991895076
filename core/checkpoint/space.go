package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Space is a forecast of disk use, in bytes.
type Space struct {
	Need int64 // what the plan writes, on top of what the folder holds now
	Free int64 // what an unprivileged user may still write there
}

// Forecast compares the plan with the free space where dir is or would be. Nothing
// is written. Space that a killed write of the same plan holds already counts as free.
func Forecast(plan *Plan, dir string) (Space, error) {
	at := filepath.Clean(dir)
	for !exists(at) && at != filepath.Dir(at) {
		at = filepath.Dir(at)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return Space{}, system("write", at, err)
	}
	s := Space{Need: plan.Size, Free: int64(fs.Bavail) * fs.Bsize}
	for _, shard := range plan.Shards {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, partial(shard.Name)), &st) == nil {
			s.Free += st.Blocks * 512
		}
	}
	return s, nil
}

// Preflight refuses what Create would refuse, and writes nothing: a folder that holds
// something, an unfinished write of other work, too little space.
func Preflight(plan *Plan, o Options) error {
	w := &Writer{dir: o.Dir, plan: plan, overwrite: o.Overwrite}
	if Unfinished(o.Dir) && (o.Resume || !o.Overwrite) {
		text, err := os.ReadFile(filepath.Join(o.Dir, journalName))
		if err != nil {
			return system("resume", o.Dir, err)
		}
		if records := new(journal).parse(text); len(records) > 0 {
			if err := w.matches(records[0], o); err != nil {
				return err
			}
		}
	} else if exists(o.Dir) {
		if err := w.refuseExisting(); err != nil {
			return err
		}
	}
	return checkSpace(plan, o.Dir)
}

func checkSpace(plan *Plan, dir string) error {
	s, err := Forecast(plan, dir)
	if err != nil || s.Free >= s.Need {
		return err
	}
	return &Error{Op: "write", File: dir, Err: unix.ENOSPC,
		Reason: fmt.Sprintf("needs %d bytes, %d are free", s.Need, s.Free),
		Hint:   fmt.Sprintf("free %d bytes or write elsewhere; nothing has been written", s.Need-s.Free)}
}

// reserve gives f its final size with the blocks allocated, so that a full disk
// shows now and not as a fault in the process that maps the file. It reports false
// where the file system cannot reserve blocks; the size is set all the same.
func reserve(f *os.File, size int64) (bool, error) {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR): // by a signal of the Go scheduler
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return false, f.Truncate(size)
		default:
			return false, err
		}
	}
}
