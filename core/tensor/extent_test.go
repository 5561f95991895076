package tensor

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Advice about bytes that are there, that are not, and beyond the end of the
// file leaves the file readable and never fails.
func TestWillNeedIsOnlyAdvice(t *testing.T) {
	path, data := filepath.Join(t.TempDir(), "file"), bytes.Repeat([]byte("0123456789abcdef"), 4096)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	e := Extent{File: file, Offset: 10, Size: int64(len(data)) - 10}
	if e.cached(int64(len(data))) {
		t.Error("a byte behind the end is in the page cache")
	}
	e.WillNeed(0, e.Size)
	e.WillNeed(e.Size-1, 1<<20)
	m, err := e.Map(3, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(m.Bytes(), data[13:113]) {
		t.Error("the mapped bytes are not those of the file")
	}
}
