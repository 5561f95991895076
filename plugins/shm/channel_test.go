package shm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestViewSeesTheSameMemory(t *testing.T) {
	p := newTestPool(t, Options{})
	peer, table := connect(t)
	s := get(t, p, 1<<20)
	ensure(t, peer, s)

	in := lookup(t, table, s, ReadOnly)
	out := lookup(t, table, s, ReadWrite)
	s.Bytes()[7] = 42
	if got := in.Bytes()[7]; got != 42 {
		t.Errorf("view reads %d: want 42", got)
	}
	out.Bytes()[8] = 43
	if got := s.Bytes()[8]; got != 43 {
		t.Errorf("segment reads %d: want 43", got)
	}
	for _, c := range []struct {
		name           string
		offset, length int64
		ok             bool
	}{
		{"all", 0, 1 << 20, true},
		{"empty at the end", 1 << 20, 0, true},
		{"one past", 1, 1 << 20, false},
		{"negative offset", -1, 1, false},
		{"negative length", 1, -1, false},
		{"overflow", 1 << 62, 1 << 62, false},
		{"overflow to small", 1<<63 - 1, 2, false},
	} {
		b, err := in.Slice(c.offset, c.length)
		if c.ok && (err != nil || int64(len(b)) != c.length || int64(cap(b)) != c.length) {
			t.Errorf("%s: %d bytes, %v: want %d", c.name, len(b), err, c.length)
		}
		if !c.ok && !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v: want ErrRange", c.name, err)
		}
	}
	in.Release()
	in.Release()
	if _, err := in.Slice(0, 1); !errors.Is(err, ErrClosed) || in.Bytes() != nil {
		t.Errorf("released view: %v: want ErrClosed", err)
	}
}

func TestLookupWaits(t *testing.T) {
	p := newTestPool(t, Options{})
	peer, table := connect(t)
	s := get(t, p, 1)
	go func() {
		time.Sleep(20 * time.Millisecond)
		peer.Ensure(t.Context(), s)
	}()
	lookup(t, table, s, ReadOnly)

	_, err := table.Lookup(timeout(t, 20*time.Millisecond), s.ID()+1, 1, ReadOnly)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unknown id: %v: want DeadlineExceeded", err)
	}
}

func TestStaleGeneration(t *testing.T) {
	p := newTestPool(t, Options{})
	peer, table := connect(t)
	s, err := p.Get(1)
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, peer, s)
	p.Put(s)
	s = get(t, p, 1)
	ensure(t, peer, s)
	lookup(t, table, s, ReadWrite)
	if _, err := table.Lookup(t.Context(), s.ID(), 1, ReadWrite); !errors.Is(err, ErrStale) {
		t.Errorf("generation 1 after 2: %v: want ErrStale", err)
	}
}

func TestDropUnmapsAfterTheLastView(t *testing.T) {
	before := mappings(t)
	p := newTestPool(t, Options{RetainBytes: -1})
	peer, table := connect(t)
	s, err := p.Get(1)
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, peer, s)
	v := lookup(t, table, s, ReadOnly)
	s.Bytes()[0] = 9
	if got := mappings(t) - before; got != 2 {
		t.Fatalf("%d mappings: want one on each side", got)
	}
	p.Put(s)
	eventually(t, "the table forgets the dropped segment", func() bool {
		table.mu.Lock()
		defer table.mu.Unlock()
		return len(table.entries) == 0
	})
	if v.Bytes()[0] != 9 {
		t.Error("memory changed under a view")
	}
	if got := mappings(t) - before; got != 1 {
		t.Errorf("%d mappings while viewed: want 1", got)
	}
	v.Release()
	if got := mappings(t) - before; got != 0 {
		t.Errorf("%d mappings after the last view: want 0", got)
	}
}

func TestFileRanges(t *testing.T) {
	p := newTestPool(t, Options{})
	peer, table := connect(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "weights"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(100_000); err != nil {
		t.Fatal(err)
	}
	const offset, size = 4097, 50_000
	shared, err := p.OpenFile(int(f.Fd()), offset, size, true)
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, peer, shared)
	v := lookup(t, table, shared, ReadWrite)
	if len(v.Bytes()) != size {
		t.Fatalf("view of %d bytes: want %d", len(v.Bytes()), size)
	}
	v.Bytes()[0], v.Bytes()[size-1] = 1, 2
	b := make([]byte, size)
	if _, err := f.ReadAt(b, offset); err != nil || b[0] != 1 || b[size-1] != 2 {
		t.Errorf("file holds %d and %d, %v: want 1 and 2", b[0], b[size-1], err)
	}
	below, start, err := v.File()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := below.WriteAt([]byte{7}, start); err != nil || v.Bytes()[0] != 7 {
		t.Errorf("view starts with %d after a write to its file at %d, %v: want 7", v.Bytes()[0], start, err)
	}
	below.Close()
	v.Release()
	if _, _, err := v.File(); !errors.Is(err, ErrClosed) {
		t.Errorf("file of a released view: %v: want ErrClosed", err)
	}
	if err := shared.Close(); err != nil {
		t.Error(err)
	}
	if err := shared.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	eventually(t, "the closed file is forgotten", func() bool {
		table.mu.Lock()
		defer table.mu.Unlock()
		return len(table.entries) == 0
	})

	empty, err := p.OpenFile(int(f.Fd()), 100_000, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	ensure(t, peer, empty)
	if v := lookup(t, table, empty, ReadOnly); len(v.Bytes()) != 0 {
		t.Errorf("empty range of %d bytes", len(v.Bytes()))
	}
}

func TestFileRefusals(t *testing.T) {
	p := newTestPool(t, Options{})
	peer, table := connect(t)
	name := filepath.Join(t.TempDir(), "weights")
	if err := os.WriteFile(name, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := p.OpenFile(int(f.Fd()), 1, 100, false); !errors.Is(err, ErrRange) {
		t.Errorf("range past the end: %v: want ErrRange", err)
	}
	if _, err := p.OpenFile(int(f.Fd()), 0, 100, true); !errors.Is(err, ErrReadOnly) {
		t.Errorf("writable range of a read-only file: %v: want ErrReadOnly", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := p.OpenFile(int(r.Fd()), 0, 0, false); err == nil {
		t.Error("a pipe was accepted")
	}
	shared, err := p.OpenFile(int(f.Fd()), 0, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	ensure(t, peer, shared)
	if _, err := table.Lookup(timeout(t, time.Second), shared.ID(), 1, ReadWrite); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write access to a read-only file: %v: want ErrReadOnly", err)
	}
}

func TestClosedChannel(t *testing.T) {
	t.Run("peer", func(t *testing.T) {
		p := newTestPool(t, Options{})
		peer, table := connect(t)
		s := get(t, p, 1)
		ensure(t, peer, s)
		lookup(t, table, s, ReadOnly).Release()
		if err := peer.Close(); err != nil {
			t.Fatal(err)
		}
		if err := peer.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if err := peer.Ensure(t.Context(), s); !errors.Is(err, ErrClosed) {
			t.Errorf("ensure: %v: want ErrClosed", err)
		}
		<-table.Done()
		if err := table.Err(); !errors.Is(err, ErrClosed) {
			t.Errorf("table: %v: want ErrClosed", err)
		}
		if _, err := table.Lookup(t.Context(), s.ID(), 1, ReadOnly); !errors.Is(err, ErrClosed) {
			t.Errorf("lookup: %v: want ErrClosed", err)
		}
	})
	t.Run("table", func(t *testing.T) {
		p := newTestPool(t, Options{})
		peer, table := connect(t)
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		if err := peer.Ensure(t.Context(), get(t, p, 1)); !errors.Is(err, ErrClosed) {
			t.Errorf("ensure: %v: want ErrClosed", err)
		}
	})
}

func TestTwoPoolsOnOnePeer(t *testing.T) {
	peer, _ := connect(t)
	ensure(t, peer, get(t, newTestPool(t, Options{}), 1))
	err := peer.Ensure(t.Context(), get(t, newTestPool(t, Options{}), 1))
	if !errors.Is(err, ErrRefused) {
		t.Errorf("same id of another pool: %v: want ErrRefused", err)
	}
}

// A plugin that does not read must not hang the host: announcements end with
// their context and drops never wait.
func TestPluginThatDoesNotRead(t *testing.T) {
	p := newTestPool(t, Options{RetainBytes: -1})
	peer, child, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	defer child.Close()
	ctx := timeout(t, 200*time.Millisecond)
	var segments []*Segment
	for err == nil && len(segments) < 5000 {
		var s *Segment
		if s, err = p.Get(1); err == nil {
			segments = append(segments, s)
			err = peer.Ensure(ctx, s)
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after %d announcements: %v: want DeadlineExceeded", len(segments), err)
	}
	start := time.Now()
	for _, s := range segments {
		p.Put(s)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("drops took %v", d)
	}
	table, err := Attach(child)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	last := get(t, p, 1)
	ensure(t, peer, last)
	lookup(t, table, last, ReadOnly)
	table.mu.Lock()
	defer table.mu.Unlock()
	if len(table.entries) != 1 {
		t.Errorf("%d entries after the queued drops: want 1", len(table.entries))
	}
}

func TestHostileDescriptors(t *testing.T) {
	memfd := func(t *testing.T, size int64, seals int) int {
		fd, err := unix.MemfdCreate("hostile", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	regular := func(t *testing.T) int {
		fd, err := unix.Open(t.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, 4096); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	segment := message{kind: kindSegment, flags: flagWritable, id: 1, size: 4096}
	for _, c := range []struct {
		name string
		fd   func(*testing.T) int
		m    message
	}{
		{"unsealed memfd", func(t *testing.T) int { return memfd(t, 4096, 0) }, segment},
		{"memfd that can grow", func(t *testing.T) int { return memfd(t, 4096, unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL) }, segment},
		{"memfd that can be resealed", func(t *testing.T) int { return memfd(t, 4096, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW) }, segment},
		{"smaller than announced", func(t *testing.T) int { return memfd(t, 4095, sizeSeals) }, segment},
		{"larger than announced", func(t *testing.T) int { return memfd(t, 8192, sizeSeals) }, segment},
		{"empty", func(t *testing.T) int { return memfd(t, 0, sizeSeals) }, message{kind: kindSegment, id: 1}},
		{"segment with an offset", func(t *testing.T) int { return memfd(t, 8192, sizeSeals) },
			message{kind: kindSegment, id: 1, offset: 4096, size: 4096}},
		{"regular file as a segment", regular, segment},
		{"file shorter than its range", regular, message{kind: kindFile, id: 1, offset: 1, size: 4096}},
		{"socket as a file", func(t *testing.T) int {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}, message{kind: kindFile, id: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer, table := connect(t)
			fd := c.fd(t)
			defer unix.Close(fd)
			before := mappings(t)
			if err := peer.send(t.Context(), c.m, fd); err != nil {
				t.Fatal(err)
			}
			_, err := table.Lookup(timeout(t, 10*time.Second), 1, 1, ReadOnly)
			if !errors.Is(err, ErrRefused) {
				t.Errorf("lookup: %v: want ErrRefused", err)
			}
			if mappings(t) != before {
				t.Error("a refused descriptor was mapped")
			}
		})
	}
}

func TestHostilePackets(t *testing.T) {
	good := message{kind: kindSegment, flags: flagWritable, id: 1, size: minClass}.encode()
	change := func(at int, to byte) []byte {
		b := good
		b[at] = to
		return b[:]
	}
	fd, err := newMemfd(minClass)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, c := range []struct {
		name    string
		packets [][]byte
		fds     []int
	}{
		{"other version", [][]byte{change(0, 2)}, []int{fd}},
		{"unknown kind", [][]byte{change(1, 9)}, []int{fd}},
		{"short", [][]byte{good[:31]}, []int{fd}},
		{"long", [][]byte{append(good[:], 0)}, []int{fd}},
		{"no descriptor", [][]byte{good[:]}, nil},
		{"two descriptors", [][]byte{good[:]}, []int{fd, fd}},
		{"many descriptors", [][]byte{good[:]}, []int{fd, fd, fd, fd, fd, fd, fd, fd}},
		{"drop with a descriptor", [][]byte{change(1, kindDrop)}, []int{fd}},
		{"announced twice", [][]byte{good[:], good[:]}, []int{fd}},
		{"size over the limit", [][]byte{change(31, 0x80)}, []int{fd}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFiles(t)
			peer, table := connect(t)
			for _, packet := range c.packets {
				var rights []byte
				if c.fds != nil {
					rights = syscall.UnixRights(c.fds...)
				}
				if _, _, err := peer.conn.WriteMsgUnix(packet, rights, nil); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-table.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the table went on")
			}
			if err := table.Err(); !errors.Is(err, ErrClosed) || errors.Is(err, os.ErrClosed) {
				t.Errorf("%v: want ErrClosed with a reason", err)
			}
			peer.Close()
			if after := openFiles(t); after != before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func TestDescriptorsStayFlat(t *testing.T) {
	p := newTestPool(t, Options{RetainBytes: 4 * minClass})
	peer, table := connect(t)
	cycle := func(i int) {
		s, err := p.Get(i % 7 * 50_000)
		if err != nil {
			t.Fatal(err)
		}
		ensure(t, peer, s)
		v, err := table.Lookup(t.Context(), s.ID(), s.Generation(), ReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		v.Release()
		if err := p.Put(s); err != nil {
			t.Fatal(err)
		}
	}
	// What is pooled is held once by the pool and once by the table.
	settled := func() bool {
		table.mu.Lock()
		defer table.mu.Unlock()
		return len(table.entries) == p.Stats().Pooled
	}
	for i := range 7 {
		cycle(i)
	}
	eventually(t, "drops have arrived", settled)
	files, maps := openFiles(t)-2*p.Stats().Pooled, mappings(t)-2*p.Stats().Pooled
	for i := range 1000 {
		cycle(i)
	}
	eventually(t, "drops have arrived", settled)
	if got := openFiles(t) - 2*p.Stats().Pooled; got != files {
		t.Errorf("%d descriptors besides the pooled segments', %d before", got, files)
	}
	if got := mappings(t) - 2*p.Stats().Pooled; got != maps {
		t.Errorf("%d mappings besides the pooled segments', %d before", got, maps)
	}
}

func BenchmarkEnsureAndLookup(b *testing.B) {
	p := newTestPool(b, Options{})
	peer, table := connect(b)
	s := get(b, p, 1<<20)
	for b.Loop() {
		if err := peer.Ensure(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		v, err := table.Lookup(b.Context(), s.ID(), s.Generation(), ReadWrite)
		if err != nil {
			b.Fatal(err)
		}
		v.Release()
	}
}
