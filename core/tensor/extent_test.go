package tensor

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// What is written past the page cache is read like anything else, and what cannot
// be written is the same error.
func TestWriteUncached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("trivium!"), 1000)
	for _, uncached := range []bool{false, true} {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		e := Extent{File: file, Offset: 7, Size: 9_000, Writable: true}
		if err := e.Write(data, 3, uncached); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || len(got) != 10_000 || !bytes.Equal(got[10:10+len(data)], data) || got[9] != 0 || got[10+len(data)] != 0 {
			t.Errorf("uncached %v: error %v, or other bytes than were written", uncached, err)
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 10_000); err != nil {
			t.Fatal(err)
		}
		if file.Close(); e.Write(data, 3, uncached) == nil {
			t.Errorf("uncached %v: a closed file was written", uncached)
		}
		if e.File, err = os.Open(path); err != nil {
			t.Fatal(err)
		}
		if e.Write(data, 3, uncached) == nil {
			t.Errorf("uncached %v: a file that is only read was written", uncached)
		}
		e.File.Close()
	}
}

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
