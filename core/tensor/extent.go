package tensor

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Extent is a range of bytes of an open file, which it borrows. It is how the
// numbers of a checkpoint are named: no bytes move until somebody maps them.
type Extent struct {
	File     *os.File
	Offset   int64
	Size     int64
	Writable bool
	// Cut: the bytes lie in several places, and are only read. File is then that
	// of the first part, and Offset 0.
	Cut *Cut
}

// Mapping is a part of a file, or of a cut tensor, in memory.
type Mapping struct {
	bytes  []byte // as asked for
	pages  []byte // as mapped
	copied bool   // to room that somebody has given
}

// Map maps length bytes from start of the extent, shared with the page cache.
// The caller calls Close. Touching memory of a file that somebody has cut short
// is a fault of the process: map only where that may happen safely.
func (e Extent) Map(start, length int64) (*Mapping, error) { return e.MapIn(start, length, nil) }

// MapIn is Map for many pieces of cut tensors: what is not in one piece is copied
// to the room that the caller gives, and may use again after Close. The mapping
// says whether it has been taken, even when there is an error.
func (e Extent) MapIn(start, length int64, room func(size int64) []byte) (*Mapping, error) {
	if start < 0 || length < 0 || start > e.Size || length > e.Size-start {
		return nil, fmt.Errorf("bytes [%d, %d) of an extent of %d", start, start+length, e.Size)
	}
	if length == 0 {
		return &Mapping{}, nil
	}
	if e.Cut != nil {
		return e.Cut.mapRange(start, length, room)
	}
	protection := unix.PROT_READ
	if e.Writable {
		protection |= unix.PROT_WRITE
	}
	page := int64(os.Getpagesize())
	at := e.Offset + start
	slack := at % page
	pages, err := unix.Mmap(int(e.File.Fd()), at-slack, int(length+slack), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of %s at %d: %w", length, e.File.Name(), at, err)
	}
	return &Mapping{bytes: pages[slack:], pages: pages}, nil
}

// WillNeed asks the system to have length bytes from start of the extent in the
// page cache soon. It is advice: nothing is promised and nothing can fail. It
// costs little where they are there already, which their ends and middle tell:
// the system's own advice looks at every page.
func (e Extent) WillNeed(start, length int64) {
	if e.Cut != nil {
		e.Cut.willNeed(start, length)
		return
	}
	at := e.Offset + start
	if e.cached(at) && e.cached(at+length/2) && e.cached(at+length-1) {
		return
	}
	_ = unix.Fadvise(int(e.File.Fd()), at, length, unix.FADV_WILLNEED)
}

// cached says whether a byte of the file can be read without waiting.
func (e Extent) cached(at int64) bool {
	n, err := unix.Preadv2(int(e.File.Fd()), [][]byte{make([]byte, 1)}, at, unix.RWF_NOWAIT)
	return err == nil && n == 1
}

// Write puts data at a place of the extent. Uncached, the bytes leave the page cache
// once the disk has them, and the disk begins at once; that is advice, which not every
// system and file system takes.
func (e Extent) Write(data []byte, start int64, uncached bool) error {
	at := e.Offset + start
	for uncached && len(data) > 0 {
		n, err := unix.Pwritev2(int(e.File.Fd()), [][]byte{data}, at, unix.RWF_DONTCACHE)
		switch {
		case err == nil && n > 0:
			data, at = data[n:], at+int64(n)
		case err != unix.EINTR: // the plain write says what is wrong, if anything is
			uncached = false
		}
	}
	_, err := e.File.WriteAt(data, at)
	return err
}

// Bytes is the mapped memory, valid until Close.
func (m *Mapping) Bytes() []byte { return m.bytes }

// Room is what the caller has given for a copy; nil: the bytes are where they were.
func (m *Mapping) Room() []byte {
	if m == nil || !m.copied {
		return nil
	}
	return m.bytes
}

// Close unmaps.
func (m *Mapping) Close() error {
	if m.pages == nil {
		return nil
	}
	pages := m.pages
	m.pages, m.bytes = nil, nil
	return unix.Munmap(pages)
}
