package shm

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain also serves as the plugin process of the tests in process_test.go.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(runChild())
	}
	os.Exit(m.Run())
}

func newTestPool(t testing.TB, o Options) *Pool {
	t.Helper()
	p, err := NewPool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if s := p.Stats(); s.Live != 0 || s.Pooled != 0 || s.LiveBytes != 0 || s.PooledBytes != 0 {
			t.Errorf("memory left behind: %+v", s)
		}
	})
	return p
}

// get returns a segment that is put back when the test ends.
func get(t testing.TB, p *Pool, size int) *Segment {
	t.Helper()
	s, err := p.Get(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Put(s); err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect returns both ends of a side channel in this process.
func connect(t testing.TB) (*Peer, *Table) {
	t.Helper()
	peer, child, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	table, err := Attach(child)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		peer.Close()
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return peer, table
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func lookup(t testing.TB, table *Table, s Shared, access Access) *View {
	t.Helper()
	v, err := table.Lookup(timeout(t, 10*time.Second), s.ID(), s.Generation(), access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Release)
	return v
}

func ensure(t testing.TB, peer *Peer, s Shared) {
	t.Helper()
	if err := peer.Ensure(timeout(t, 10*time.Second), s); err != nil {
		t.Fatal(err)
	}
}

// mappings counts the memfds of this package mapped in the process.
func mappings(t testing.TB) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "memfd:trivium")
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// eventually waits for what the receiving goroutine does on its own.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not true after 10 s: %s", what)
		}
	}
}
