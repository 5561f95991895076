package shm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Segment is a sealed memfd, mapped read-write in this process. It comes from
// Pool.Get with one reference, which the caller gives back with Pool.Put.
type Segment struct {
	handle
	data       []byte
	generation atomic.Uint64
	refs       atomic.Int64 // 0 while pooled
	freed      uint64       // Pool.clock when it was last pooled; guarded by Pool.mu
}

var _ Shared = (*Segment)(nil)

func newSegment(id uint64, size int) (*Segment, error) {
	fd, err := newMemfd(size)
	if err != nil {
		return nil, err
	}
	data, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return &Segment{handle: handle{id: id, fd: fd}, data: data}, nil
}

func (s *Segment) ID() uint64         { return s.id }
func (s *Segment) Generation() uint64 { return s.generation.Load() }
func (s *Segment) Size() int          { return len(s.data) }

// FD is owned by the segment: do not close it.
func (s *Segment) FD() int { return s.fd }

// Bytes is the whole mapping, at least as long as was asked for. Reused memory
// holds its previous contents. It is valid while the caller holds a reference.
func (s *Segment) Bytes() []byte { return s.data }

// Addr is the address of the first byte.
func (s *Segment) Addr() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(s.data))) }

// Retain adds a reference, to be given back with Pool.Put. It reports false,
// and adds none, when the segment is already back in the pool.
func (s *Segment) Retain() bool {
	for {
		refs := s.refs.Load()
		if refs == 0 {
			return false
		}
		if s.refs.CompareAndSwap(refs, refs+1) {
			return true
		}
	}
}

// release takes one reference away; last is true for the one that pools the segment.
func (s *Segment) release() (last bool, err error) {
	for {
		refs := s.refs.Load()
		if refs == 0 {
			return false, fmt.Errorf("put segment %d: %w: it has no references left", s.id, ErrClosed)
		}
		if s.refs.CompareAndSwap(refs, refs-1) {
			return refs == 1, nil
		}
	}
}

// Prefault allocates the pages of a segment that has never been used. Call it
// when all of the segment will be written: page by page the first write of
// 256 MiB costs half as much again. Reused segments have their pages already.
func (s *Segment) Prefault() error {
	if s.generation.Load() > 1 {
		return nil
	}
	if err := unix.Madvise(s.data, unix.MADV_POPULATE_WRITE); err != nil {
		return fmt.Errorf("prefault segment %d (%d bytes): %w", s.id, len(s.data), err)
	}
	return nil
}

func (s *Segment) announcement() (message, *handle) {
	return message{kind: kindSegment, flags: flagWritable, id: s.id, size: uint64(len(s.data))}, &s.handle
}

// destroy tells the holders, then unmaps. Only the pool calls it, without its lock.
func (s *Segment) destroy() error {
	s.dropAll()
	err := unix.Munmap(s.data)
	if cerr := unix.Close(s.fd); err == nil {
		err = cerr
	}
	return err
}
