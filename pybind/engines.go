package pybind

import (
	"sync"

	"github.com/trivium-ml/trivium/core"
)

// handles gives out numbers for values that Python holds. A number is never
// used twice.
type handles[T any] struct {
	noun string
	mu   sync.Mutex
	last int64
	held map[int64]T
}

func newHandles[T any](noun string) *handles[T] {
	return &handles[T]{noun: noun, held: make(map[int64]T)}
}

func (h *handles[T]) add(value T) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	h.held[h.last] = value
	return h.last
}

func (h *handles[T]) find(id int64) (T, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.get(id)
}

func (h *handles[T]) take(id int64) (T, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	value, err := h.get(id)
	delete(h.held, id)
	return value, err
}

// get is called with the lock held.
func (h *handles[T]) get(id int64) (T, error) {
	value, ok := h.held[id]
	if !ok {
		return value, core.Errorf(core.ErrEngineClosed, "%s %d is closed", h.noun, id)
	}
	return value, nil
}

func (h *handles[T]) all() []T {
	h.mu.Lock()
	defer h.mu.Unlock()
	values := make([]T, 0, len(h.held))
	for _, value := range h.held {
		values = append(values, value)
	}
	return values
}
