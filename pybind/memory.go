package pybind

import (
	"encoding/json"
	"sync"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/core/tensor/cbridge"
	"github.com/trivium-ml/trivium/plugins/shm"
)

// segments is the shared memory of this process: every engine uses this pool, so
// that a tensor of trivium.empty is known to all of them.
var segments = sync.OnceValues(func() (*shm.Pool, error) { return shm.NewPool(shm.Options{}) })

// Empty gives memory that plugins see without a copy, as a dense tensor that is
// exported into the two Arrow structures at these addresses; schema 0 leaves the
// second out. shape is JSON. It returns the address of the first element.
func Empty(dtype string, shape string, array int64, schema int64) (address int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	t, err := allocate(dtype, shape)
	if err != nil {
		return 0, err
	}
	defer t.Release()
	if err := cbridge.Export(t, uintptr(array), uintptr(schema)); err != nil {
		return 0, core.Invalid("", "%v", err)
	}
	return int64(uintptr(t.Pointer())), nil
}

// memoryUse counts the segments that somebody holds, and those kept for reuse.
type memoryUse struct {
	Live        int   `json:"live"`
	LiveBytes   int64 `json:"live_bytes"`
	Pooled      int   `json:"pooled"`
	PooledBytes int64 `json:"pooled_bytes"`
}

// MemoryUse says how much shared memory this process holds, as JSON.
func MemoryUse() (use string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	pool, err := segments()
	if err != nil {
		return "", err
	}
	s := pool.Stats()
	text, err := json.Marshal(memoryUse{s.Live, s.LiveBytes, s.Pooled, s.PooledBytes})
	return string(text), err
}

// allocate makes a tensor that is the only holder of a segment.
func allocate(dtype, shape string) (*tensor.Tensor, error) {
	d, err := tensor.ParseDtype(dtype)
	if err != nil {
		return nil, core.Invalid("", "%v", err)
	}
	var extents []int64
	if err := json.Unmarshal([]byte(shape), &extents); err != nil {
		return nil, core.Invalid("", "shape %s: want a list of integers", shape)
	}
	span, err := tensor.Span(d, extents, tensor.RowMajor(extents))
	if err != nil || span == 0 {
		return nil, core.Invalid("", "shape %s of %s: want positive extents of less than 2^63 bytes", shape, dtype)
	}
	pool, err := segments()
	if err != nil {
		return nil, err
	}
	segment, err := pool.Get(int(span))
	if err != nil {
		return nil, core.Errorf(core.ErrOutOfMemory, "%d bytes of shared memory for %s%s: %w", span, dtype, shape, err)
	}
	return tensor.Own(segment.Bytes()[:span], d, extents, func() { _ = pool.Put(segment) })
}
