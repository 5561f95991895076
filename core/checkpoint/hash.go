package checkpoint

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

const hashChunk = 1 << 20

// Hash is the SHA-256 of the tensor's bytes. It reads the file and does not map it,
// so a file cut short meanwhile is an error and not a fault.
func (t *Tensor) Hash(ctx context.Context) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	buf := make([]byte, min(hashChunk, t.Size))
	for at := int64(0); at < t.Size; at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		buf = buf[:min(int64(len(buf)), t.Size-at)]
		if err := t.read(buf, at); err != nil {
			return sum, err
		}
		h.Write(buf)
	}
	h.Sum(sum[:0])
	return sum, nil
}

// read fills p with the tensor's bytes from at on.
func (t *Tensor) read(p []byte, at int64) error {
	if t.cut != nil {
		return t.readCut(p, at)
	}
	n, err := t.File.ReadAt(p, t.Offset+at)
	if n == len(p) {
		return nil
	}
	e := system("read", t.File.Path, err)
	e.Tensor = t.Name
	if errors.Is(err, io.EOF) {
		e.Reason, e.Err = fmt.Sprintf("the file ends at byte %d of the tensor: it was cut while in use", at+int64(n)), ErrTruncated
	}
	return e
}

func (t *Tensor) readCut(p []byte, at int64) error {
	err := t.cut.ReadAt(p, at)
	if err == nil {
		return nil
	}
	// The reason names the file of the part.
	e := &Error{Op: "read", File: filepath.Dir(t.File.Path), Tensor: t.Name, Reason: err.Error(), Hint: remedy(err), Err: err}
	if errors.Is(err, io.EOF) {
		e.Reason, e.Err = err.Error()+": it was cut while in use", ErrTruncated
	}
	return e
}
