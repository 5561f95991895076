package cpu

// #include "support.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// memory is C memory of one owner, released as a whole.
type memory struct {
	blocks []block
}

type block struct {
	data  unsafe.Pointer
	bytes C.size_t
}

// alloc gives 64-byte aligned memory, not cleared.
func (m *memory) alloc(bytes C.size_t) (unsafe.Pointer, error) {
	data := C.trivium_alloc(bytes)
	if data == nil {
		return nil, fmt.Errorf("cpu: no memory for %d bytes", bytes)
	}
	m.blocks = append(m.blocks, block{data, bytes})
	return data, nil
}

func (m *memory) free() {
	for _, b := range m.blocks {
		C.trivium_free(b.data, b.bytes)
	}
	m.blocks = nil
}

// array gives C memory for n values of T, which holds pointers to pinned Go
// memory or none.
func array[T any](m *memory, n int) ([]T, error) {
	var zero T
	data, err := m.alloc(C.size_t(n) * C.size_t(unsafe.Sizeof(zero)))
	if err != nil {
		return nil, err
	}
	values := unsafe.Slice((*T)(data), n)
	clear(values)
	return values, nil
}

// liveBytes is the C memory that is not released yet, of all sessions.
func liveBytes() int64 { return int64(C.trivium_live_bytes()) }
