package cuda

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
)

// cache keeps compiled kernels in a folder, a file for each key: a checksum,
// then the machine code. The empty folder keeps nothing.
type cache struct{ dir string }

func (c cache) path(key string) string { return filepath.Join(c.dir, key+".cubin") }

// load misses on a file that is absent, cut short or damaged.
func (c cache) load(key string) ([]byte, bool) {
	if c.dir == "" {
		return nil, false
	}
	data, err := os.ReadFile(c.path(key))
	if err != nil || len(data) <= sha256.Size {
		return nil, false
	}
	sum := sha256.Sum256(data[sha256.Size:])
	return data[sha256.Size:], bytes.Equal(sum[:], data[:sha256.Size])
}

// store writes beside the final name and renames: readers see all of it or nothing.
func (c cache) store(key string, cubin []byte) error {
	if c.dir == "" {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return fmt.Errorf("cuda: keep a compiled kernel: %w", err)
	}
	file, err := os.CreateTemp(c.dir, "cubin-*")
	if err != nil {
		return fmt.Errorf("cuda: keep a compiled kernel: %w", err)
	}
	defer os.Remove(file.Name())
	sum := sha256.Sum256(cubin)
	_, err = file.Write(append(sum[:], cubin...))
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), c.path(key))
	}
	if err != nil {
		return fmt.Errorf("cuda: keep a compiled kernel: %w", err)
	}
	return nil
}
