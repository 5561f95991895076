package checkpoint

import (
	"errors"
	"os"

	"github.com/trivium-ml/trivium/core/tensor"
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

// Tensor is a named range of a file: row-major, little-endian. That of a
// distributed checkpoint may be cut over several files.
type Tensor struct {
	Name   string
	Dtype  Dtype
	Shape  []int64
	File   *File // of a cut tensor: that of its first part
	Offset int64 // bytes from the beginning of the file; of a cut tensor 0
	Size   int64 // bytes

	cut *tensor.Cut // nil: in one piece
}

// Parts is in how many pieces the tensor lies.
func (t *Tensor) Parts() int {
	if t.cut == nil {
		return 1
	}
	return len(t.cut.Parts)
}

// OpenFile opens and checks one safetensors file. No tensor's bytes are read.
func OpenFile(path string) (*File, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	h, err := readHeader(f.f, f.Size)
	if err != nil {
		f.Close()
		return nil, inFile(err, path)
	}
	return newFile(f.f, path, f.Size, h), nil
}

// openRegular opens a file whose tensors are not known yet.
func openRegular(path string) (*File, error) {
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
	return &File{Path: path, Size: info.Size(), f: f}, nil
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
