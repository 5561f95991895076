package shm

import (
	"errors"
	"fmt"
)

// The errors of this package wrap one of these; test them with errors.Is.
var (
	// ErrClosed: the pool, peer, table, view or file was closed, or the other process is gone.
	ErrClosed = errors.New("shared memory is closed")
	// ErrStale: the memory was handed to somebody else since the reference was made.
	ErrStale = errors.New("stale shared memory reference")
	// ErrRefused: a received descriptor failed its checks and was never mapped.
	ErrRefused = errors.New("shared memory descriptor refused")
	// ErrRange: an offset or length lies outside the memory it refers to.
	ErrRange = errors.New("outside the shared memory range")
	// ErrReadOnly: write access was asked of memory that was announced read-only.
	ErrReadOnly = errors.New("shared memory is read-only")
)

// checkRange reports whether [offset, offset+length) lies in [0, size), without overflow.
func checkRange(offset, length, size int64) error {
	if offset < 0 || length < 0 || offset > size || length > size-offset {
		return fmt.Errorf("%w: [%d, +%d) of %d bytes", ErrRange, offset, length, size)
	}
	return nil
}
