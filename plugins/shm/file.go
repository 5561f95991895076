package shm

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// File is a range of an open file, announced like a segment: the plugin maps
// the page cache itself. Nothing is mapped in this process. A file has no seals:
// whoever truncates it while it is mapped makes the reader fault.
type File struct {
	handle
	offset, size int64
	writable     bool
	close        sync.Once
}

var _ Shared = (*File)(nil)

// OpenFile describes [offset, offset+size) of fd, which stays the caller's: it
// is duplicated. The range must lie in the file; writable needs a descriptor
// open for reading and writing.
func (p *Pool) OpenFile(fd int, offset, size int64, writable bool) (*File, error) {
	if err := checkFile(fd, offset, size, writable); err != nil {
		return nil, err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &File{handle: handle{id: p.newID(), fd: own}, offset: offset, size: size, writable: writable}, nil
}

func (f *File) ID() uint64         { return f.id }
func (f *File) Generation() uint64 { return 1 }
func (f *File) Size() int          { return int(f.size) }

// Close tells every peer to unmap and closes the descriptor. It may be repeated.
func (f *File) Close() error {
	var err error
	f.close.Do(func() {
		f.dropAll()
		err = unix.Close(f.fd)
	})
	return err
}

func (f *File) announcement() (message, *handle) {
	m := message{kind: kindFile, id: f.id, offset: uint64(f.offset), size: uint64(f.size)}
	if f.writable {
		m.flags = flagWritable
	}
	return m, &f.handle
}

// checkFile is applied by both sides: fd is a regular file that contains the
// range and was opened for the access promised.
func checkFile(fd int, offset, size int64, writable bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("mode %#o: want a regular file", st.Mode)
	}
	if err := checkRange(offset, size, st.Size); err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("fcntl: %w", err)
	}
	mode := flags & unix.O_ACCMODE
	if mode != unix.O_RDWR && (writable || mode == unix.O_WRONLY) {
		return fmt.Errorf("%w: descriptor is not open for the access promised", ErrReadOnly)
	}
	return nil
}
