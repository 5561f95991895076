package cpu

// #include "support.h"
import "C"

import (
	"fmt"
	"sync/atomic"
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
	b, spare := takeSpare(bytes)
	if !spare {
		b = block{C.trivium_alloc(bytes), bytes}
	}
	if b.data == nil {
		return nil, fmt.Errorf("cpu: no memory for %d bytes", bytes)
	}
	live.Add(int64(b.bytes))
	m.blocks = append(m.blocks, b)
	return b.data, nil
}

func (m *memory) free() {
	for _, b := range m.blocks {
		live.Add(-int64(b.bytes))
		if !keepSpare(b) {
			C.trivium_free(b.data)
		}
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

// live is the C memory that its owners have not released yet, in bytes.
var live atomic.Int64
