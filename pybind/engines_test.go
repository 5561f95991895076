package pybind

import (
	"sync"
	"sync/atomic"
	"testing"
)

// What a handle names is given up once, however many ask for it: the taker releases it.
func TestAHandleIsTakenOnce(t *testing.T) {
	table := newHandles[string]("thing")
	for range 1000 {
		id := table.add("x")
		var taken atomic.Int64
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				if _, err := table.take(id); err == nil {
					taken.Add(1)
				}
			})
		}
		group.Wait()
		if n := taken.Load(); n != 1 {
			t.Fatalf("taken %d times, want once", n)
		}
	}
	if len(table.held) != 0 {
		t.Fatalf("%d handles left, want 0", len(table.held))
	}
}
