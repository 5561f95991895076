package checkpoint

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// File is one open safetensors file. It is safe for concurrent reading; Close
// ends every use of its descriptor in this process.
type File struct {
	Path     string
	Size     int64 // bytes, header included
	Metadata map[string]string
	Tensors  []*Tensor // by offset

	f *os.File
}

// Tensor is a named range of a file: row-major, little-endian.
type Tensor struct {
	Name   string
	Dtype  Dtype
	Shape  []int64
	File   *File
	Offset int64 // bytes from the beginning of the file
	Size   int64 // bytes
}

// OpenFile opens and checks one safetensors file. No tensor's bytes are read.
func OpenFile(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, system("read", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{Op: "read", File: path, Reason: "not a regular file", Err: ErrFormat}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, system("read", path, err)
	}
	h, err := readHeader(f, info.Size())
	if err != nil {
		f.Close()
		return nil, inFile(err, path)
	}
	return newFile(f, path, info.Size(), h), nil
}

func newFile(f *os.File, path string, size int64, h *header) *File {
	file := &File{Path: path, Size: size, Metadata: h.metadata, f: f}
	for _, e := range h.entries {
		file.Tensors = append(file.Tensors, &Tensor{
			Name: e.name, Dtype: e.dtype, Shape: e.shape, File: file, Offset: h.data + e.begin, Size: e.end - e.begin,
		})
	}
	return file
}

// inFile completes an error of this package with the file it is about.
func inFile(err error, path string) error {
	var e *Error
	if errors.As(err, &e) && e.File == "" {
		e.File = path
	}
	return err
}

// FD is the open descriptor, valid until Close. It may be sent to another process.
func (f *File) FD() int { return int(f.f.Fd()) }

// ReadAt reads file bytes, as io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Close closes the descriptor. Mappings stay valid.
func (f *File) Close() error { return f.f.Close() }

// Mapping is a tensor's bytes in the page cache. Touching it after the file has
// been cut short by someone else is a fault of the process: map only where that
// may happen safely, and use ReadAt elsewhere.
type Mapping struct {
	Data  []byte
	pages []byte
}

// Map maps the tensor, for writing too if writable. The caller owns the mapping
// and releases it with Close; it outlives the file's Close.
func (t *Tensor) Map(writable bool) (*Mapping, error) {
	if t.Size == 0 {
		return &Mapping{}, nil
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	skip := t.Offset % int64(os.Getpagesize())
	pages, err := unix.Mmap(t.File.FD(), t.Offset-skip, int(t.Size+skip), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, &Error{Op: "map", File: t.File.Path, Tensor: t.Name, Reason: fmt.Sprintf("%d bytes: %v", t.Size, err), Err: err}
	}
	return &Mapping{Data: pages[skip:], pages: pages}, nil
}

// Close releases the mapping; Data must not be used afterwards.
func (m *Mapping) Close() error {
	if m.pages == nil {
		return nil
	}
	pages := m.pages
	m.Data, m.pages = nil, nil
	return unix.Munmap(pages)
}
