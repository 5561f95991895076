package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// File is the file below the view, and where the announced range starts in it.
// It is a duplicate, which the caller closes.
func (v *View) File() (*os.File, int64, error) {
	if v.entry == nil {
		return nil, 0, fmt.Errorf("file of a view: %w: the view was released", ErrClosed)
	}
	fd, err := unix.FcntlInt(uintptr(v.entry.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("shared-%d", v.entry.id)), int64(v.entry.offset), nil
}
