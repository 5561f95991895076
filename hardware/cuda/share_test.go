package cuda

import (
	"bytes"
	"errors"
	"sync"
	"testing"
)

// fake counts what a driver would be asked.
type fake struct {
	mu             sync.Mutex
	opened, closed map[string]int
}

func fakeHandles() (*fake, *handles[string]) {
	f := &fake{opened: map[string]int{}, closed: map[string]int{}}
	count := func(m map[string]int, key string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		m[key]++
	}
	return f, newHandles(func(h string) (string, error) {
		if h[0] == 0xff {
			return "", errors.New("refused")
		}
		count(f.opened, h)
		return h, nil
	}, func(h string) error { count(f.closed, h); return nil })
}

func handle(n byte) []byte { return bytes.Repeat([]byte{n}, HandleSize) }

func TestHandlesAreOpenedOnce(t *testing.T) {
	f, h := fakeHandles()
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			if _, err := h.get(handle(byte(i % 4))); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i := range byte(4) {
		if n := f.opened[string(handle(i))]; n != 1 {
			t.Errorf("handle %d was opened %d times", i, n)
		}
	}
	if err := h.drop(handle(1)); err != nil {
		t.Error(err)
	}
	if err := h.drop(handle(1)); err != nil {
		t.Error("dropping twice:", err)
	}
	if f.closed[string(handle(1))] != 1 || h.len() != 3 {
		t.Errorf("closed %d times, %d held", f.closed[string(handle(1))], h.len())
	}
	if _, err := h.get(handle(1)); err != nil || f.opened[string(handle(1))] != 2 {
		t.Errorf("a dropped handle is not opened anew: %v", err)
	}
}

func TestHandlesThatFail(t *testing.T) {
	_, h := fakeHandles()
	if _, err := h.get(handle(0xff)); err == nil || h.len() != 0 {
		t.Errorf("error %v, %d held", err, h.len())
	}
	if _, err := h.get([]byte("short")); err == nil {
		t.Error("a short handle was opened")
	}
}
