package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Access is how a view may be used. Inputs are looked up ReadOnly, so that a
// stray write faults in the plugin instead of changing the caller's tensor.
type Access int

const (
	ReadOnly Access = iota
	ReadWrite
)

// View is a plugin's hold on announced memory. It is used by one goroutine at a
// time, and keeps the memory mapped until Release.
type View struct {
	table *Table
	entry *entry
	data  []byte
}

// Bytes is the announced range; nil after Release.
func (v *View) Bytes() []byte { return v.data }

// Slice returns [offset, offset+length) of the view, valid until Release.
func (v *View) Slice(offset, length int64) ([]byte, error) {
	if v.entry == nil {
		return nil, fmt.Errorf("slice: %w: the view was released", ErrClosed)
	}
	if err := checkRange(offset, length, int64(len(v.data))); err != nil {
		return nil, err
	}
	return v.data[offset : offset+length : offset+length], nil
}

// Release ends the use of the view and everything sliced from it. It may be repeated.
func (v *View) Release() {
	e := v.entry
	if e == nil {
		return
	}
	v.entry, v.data = nil, nil
	v.table.mu.Lock()
	e.views--
	unused := e.dropped && e.views == 0
	v.table.mu.Unlock()
	if unused {
		e.unmap()
	}
}

// entry is one announced descriptor and its mappings, made when first looked up.
type entry struct {
	message
	fd         int
	generation uint64 // highest seen
	views      int
	dropped    bool
	maps       [2]mapping // by Access
}

// mapping is the whole pages around the announced range, and the range.
type mapping struct {
	pages, data []byte
}

// mapped returns the announced range, mapped for access.
func (e *entry) mapped(access Access) ([]byte, error) {
	protection := unix.PROT_READ
	if access == ReadWrite {
		if e.flags&flagWritable == 0 {
			return nil, ErrReadOnly
		}
		protection |= unix.PROT_WRITE
	}
	m := &e.maps[access]
	if m.pages != nil || e.size == 0 {
		return m.data, nil
	}
	lead := int64(e.offset) & int64(os.Getpagesize()-1)
	pages, err := unix.Mmap(e.fd, int64(e.offset)-lead, int(lead)+int(e.size), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", e.size, err)
	}
	*m = mapping{pages: pages, data: pages[lead : lead+int64(e.size) : lead+int64(e.size)]}
	return m.data, nil
}

// drop marks e as forgotten by the host; the caller unmaps if it reports true.
func (e *entry) drop() bool {
	e.dropped = true
	return e.views == 0
}

// unmap is called once, when e is dropped and has no views.
func (e *entry) unmap() {
	for _, m := range e.maps {
		if m.pages != nil {
			unix.Munmap(m.pages)
		}
	}
	unix.Close(e.fd)
}
