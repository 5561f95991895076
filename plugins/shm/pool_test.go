package shm

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestClassSize(t *testing.T) {
	for _, c := range []struct{ size, want int }{
		{0, 64 << 10}, {1, 64 << 10}, {64 << 10, 64 << 10}, {64<<10 + 1, 80 << 10},
		{80<<10 + 1, 96 << 10}, {112<<10 + 1, 128 << 10}, {1 << 28, 1 << 28}, {1<<28 + 1, 5 << 26},
	} {
		got, err := classSize(c.size)
		if want := roundUp(c.want, os.Getpagesize()); err != nil || got != want {
			t.Errorf("classSize(%d) = %d, %v: want %d", c.size, got, err, want)
		}
	}
	for _, size := range []int{-1, maxClass + 1} {
		if _, err := classSize(size); !errors.Is(err, ErrRange) {
			t.Errorf("classSize(%d): %v: want ErrRange", size, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(minClass, maxClass).Draw(t, "size")
		class, err := classSize(size)
		if err != nil || class < size || class-size > size/4 || class%os.Getpagesize() != 0 {
			t.Fatalf("classSize(%d) = %d, %v", size, class, err)
		}
		if again, _ := classSize(class); again != class {
			t.Fatalf("classSize(%d) = %d: a class is its own class", class, again)
		}
	})
}

func TestSealsRefuseEveryResize(t *testing.T) {
	s := get(t, newTestPool(t, Options{}), 1<<20)
	for _, size := range []int64{0, 1 << 19, 1 << 21} {
		if err := unix.Ftruncate(s.FD(), size); err != unix.EPERM {
			t.Errorf("ftruncate to %d: %v: want EPERM", size, err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(s.FD()), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != unix.EPERM {
		t.Errorf("adding a seal: %v: want EPERM", err)
	}
	flags, err := unix.FcntlInt(uintptr(s.FD()), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v: want close-on-exec", flags, err)
	}
}

func TestReuseKeepsIDAndBumpsGeneration(t *testing.T) {
	p := newTestPool(t, Options{})
	first, err := p.Get(100_000)
	if err != nil {
		t.Fatal(err)
	}
	if first.Generation() != 1 {
		t.Errorf("generation %d: want 1", first.Generation())
	}
	if err := first.Prefault(); err != nil {
		t.Error(err)
	}
	id, addr := first.ID(), first.Addr()
	if err := p.Put(first); err != nil {
		t.Fatal(err)
	}
	if err := p.Put(first); !errors.Is(err, ErrClosed) {
		t.Errorf("second put: %v: want ErrClosed", err)
	}
	if first.Retain() {
		t.Error("retained a pooled segment")
	}
	second := get(t, p, 99_000)
	if second.ID() != id || second.Addr() != addr || second.Generation() != 2 {
		t.Errorf("got id %d generation %d: want the pooled %d, 2", second.ID(), second.Generation(), id)
	}
	if third := get(t, p, 100_000); third.ID() == id {
		t.Errorf("id %d handed out twice", id)
	}
	if s := p.Stats(); s.Created != 2 || s.Reused != 1 || s.Live != 2 || s.Pooled != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestRetainedSegmentIsNotPooled(t *testing.T) {
	p := newTestPool(t, Options{})
	s := get(t, p, 1)
	if !s.Retain() {
		t.Fatal("cannot retain a live segment")
	}
	if err := p.Put(s); err != nil {
		t.Fatal(err)
	}
	if other := get(t, p, 1); other == s {
		t.Error("a segment with a reference was handed out again")
	}
}

func TestRetainBytesEvictsLongestUnused(t *testing.T) {
	p := newTestPool(t, Options{RetainBytes: 3 * minClass})
	before := mappings(t)
	segments := make([]*Segment, 4)
	for i := range segments {
		segments[i], _ = p.Get(1)
	}
	for _, s := range segments {
		if err := p.Put(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := p.Stats(); s.PooledBytes != 3*minClass {
		t.Errorf("stats %+v: want %d bytes pooled", s, 3*minClass)
	}
	if got := mappings(t) - before; got != 3 {
		t.Errorf("%d segments mapped: want 3", got)
	}
	for i := 3; i >= 1; i-- {
		if s := get(t, p, 1); s != segments[i] {
			t.Errorf("got segment %d: want %d, the most recently used", s.ID(), segments[i].ID())
		}
	}

	none := newTestPool(t, Options{RetainBytes: -1})
	s, err := none.Get(1)
	if err != nil {
		t.Fatal(err)
	}
	none.Put(s)
	if got := none.Stats().Pooled; got != 0 {
		t.Errorf("%d segments pooled: want none", got)
	}
}

func TestClosedPool(t *testing.T) {
	before := mappings(t)
	p, err := NewPool(Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Get(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(1); !errors.Is(err, ErrClosed) {
		t.Errorf("get: %v: want ErrClosed", err)
	}
	s.Bytes()[0] = 1 // live segments outlive the pool
	if err := p.Put(s); err != nil {
		t.Error(err)
	}
	if got := mappings(t) - before; got != 0 {
		t.Errorf("%d segments still mapped", got)
	}
}

func TestFindViews(t *testing.T) {
	p := newTestPool(t, Options{})
	a, b := get(t, p, 1<<20), get(t, p, 1<<16)
	size := a.Size()
	for _, c := range []struct {
		name   string
		addr   uintptr
		size   int
		want   *Segment
		offset int64
	}{
		{"all", a.Addr(), size, a, 0},
		{"inner", a.Addr() + 4096, 100, a, 4096},
		{"tail", a.Addr() + uintptr(size) - 1, 1, a, int64(size) - 1},
		{"empty view", a.Addr() + 5, 0, a, 5},
		{"other", b.Addr() + 8, 8, b, 8},
		{"past the end", a.Addr() + 1, size, nil, 0},
		{"before", a.Addr() - 1, 2, nil, 0},
		{"negative size", a.Addr(), -1, nil, 0},
		{"zero address", 0, 1, nil, 0},
		{"last address", ^uintptr(0), 1, nil, 0},
	} {
		if s, offset, ok := p.Find(c.addr, c.size); s != c.want || offset != c.offset || ok != (c.want != nil) {
			t.Errorf("%s: found %v at %d: want %v at %d", c.name, s != nil, offset, c.want != nil, c.offset)
		}
	}
	c, err := p.Get(1 << 18)
	if err != nil {
		t.Fatal(err)
	}
	p.Put(c)
	if _, _, ok := p.Find(c.Addr(), 1); ok {
		t.Error("found a pooled segment")
	}
}

// A pool behaves like a set of live segments with counted references and a
// bounded stack of free ones, whatever is done in whatever order.
func TestPoolAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		retain := rapid.Int64Range(-1, 1<<20).Draw(t, "retain")
		p, err := NewPool(Options{RetainBytes: retain})
		if err != nil {
			t.Fatal(err)
		}
		if retain == 0 {
			retain = p.retain
		}
		var live []*Segment
		refs := map[*Segment]int{}
		generations := map[uint64]uint64{}
		put := func(i int) {
			s := live[i]
			if err := p.Put(s); err != nil {
				t.Fatal(err)
			}
			if refs[s]--; refs[s] == 0 {
				delete(refs, s)
				live = append(live[:i:i], live[i+1:]...)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"get": func(t *rapid.T) {
				size := rapid.IntRange(0, 300<<10).Draw(t, "size")
				s, err := p.Get(size)
				if err != nil {
					t.Fatal(err)
				}
				if s.Size() < size || refs[s] != 0 {
					t.Fatalf("segment of %d bytes with %d references for %d bytes", s.Size(), refs[s], size)
				}
				if s.Generation() != generations[s.ID()]+1 {
					t.Fatalf("generation %d after %d", s.Generation(), generations[s.ID()])
				}
				generations[s.ID()]++
				refs[s] = 1
				live = append(live, s)
			},
			"retain": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("nothing is live")
				}
				s := rapid.SampledFrom(live).Draw(t, "segment")
				if !s.Retain() {
					t.Fatal("cannot retain a live segment")
				}
				refs[s]++
			},
			"put": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("nothing is live")
				}
				put(rapid.IntRange(0, len(live)-1).Draw(t, "index"))
			},
			"": func(t *rapid.T) {
				var bytes int64
				for _, s := range live {
					bytes += int64(s.Size())
					at := rapid.IntRange(0, s.Size()-1).Draw(t, "offset")
					if got, offset, ok := p.Find(s.Addr()+uintptr(at), s.Size()-at); !ok || got != s || offset != int64(at) {
						t.Fatalf("live segment %d not found at %d", s.ID(), at)
					}
				}
				stats := p.Stats()
				if stats.Live != len(live) || stats.LiveBytes != bytes || stats.PooledBytes > max(retain, 0) {
					t.Fatalf("stats %+v: want %d live of %d bytes, at most %d pooled", stats, len(live), bytes, retain)
				}
			},
		})
		for len(live) > 0 {
			put(0)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if s := p.Stats(); s.Live != 0 || s.Pooled != 0 || s.LiveBytes != 0 || s.PooledBytes != 0 {
			t.Fatalf("memory left behind: %+v", s)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	p := newTestPool(t, Options{RetainBytes: 1 << 20})
	peer, table := connect(t)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 200 {
				s, err := p.Get((worker*7 + i) % 5 * 100_000)
				if err != nil {
					t.Error(err)
					return
				}
				if err := peer.Ensure(t.Context(), s); err != nil {
					t.Error(err)
				}
				s.Bytes()[0] = byte(i)
				v, err := table.Lookup(t.Context(), s.ID(), s.Generation(), ReadOnly)
				if err != nil {
					t.Error(err)
					return
				}
				if v.Bytes()[0] != byte(i) {
					t.Errorf("read %d: want %d", v.Bytes()[0], byte(i))
				}
				v.Release()
				if found, _, ok := p.Find(s.Addr()+1, 1); !ok || found != s {
					t.Error("live segment not found")
				}
				if err := p.Put(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkFind(b *testing.B) {
	p := newTestPool(b, Options{})
	var s *Segment
	for range 1000 {
		s = get(b, p, 1)
	}
	addr := s.Addr()
	for b.Loop() {
		if _, _, ok := p.Find(addr, 16); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkGetPut(b *testing.B) {
	p := newTestPool(b, Options{})
	for b.Loop() {
		s, err := p.Get(1 << 20)
		if err != nil {
			b.Fatal(err)
		}
		p.Put(s)
	}
}

// A segment too large to keep does not cost the others their place.
func TestLargeSegmentsDoNotEvict(t *testing.T) {
	p, err := NewPool(Options{RetainBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	small, err := p.Get(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	large, err := p.Get(2 << 20)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Segment{small, large} {
		if err := p.Put(s); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Stats(); got.Pooled != 1 || got.PooledBytes != 1<<16 {
		t.Errorf("%d segments of %d bytes are kept, want the small one", got.Pooled, got.PooledBytes)
	}
}
