package shm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// sizeSeals make the size of a memfd final: no process can make another one
// fault (SIGBUS) by shrinking what it has mapped.
//
// F_SEAL_FUTURE_WRITE, which would make inputs read-only for the plugin, is not
// used: it is permanent, so a pooled segment could never become an output again.
// Inputs are mapped PROT_READ by the plugin instead (see Table.Lookup).
const sizeSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// newMemfd returns a sealed memfd of size bytes. The caller closes it.
func newMemfd(size int) (int, error) {
	fd, err := unix.MemfdCreate("trivium", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size memfd to %d bytes: %w", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sizeSeals); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal memfd: %w", err)
	}
	return fd, nil
}
