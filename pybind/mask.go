package pybind

import (
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// maskArrays is a block mask of the Python caller.
type maskArrays struct {
	BlockSize int                `json:"block_size"`
	Heads     int                `json:"heads"`
	Sequences []core.BlockExtent `json:"sequences"`
	RowPtr    *array             `json:"row_ptr"` // int64
	Columns   *array             `json:"columns"` // int32
	// Dense is instead a bool [batch or 1, heads, query blocks, key blocks].
	Dense *array `json:"dense"`
}

// blockMask views the arrays as the mask of a request; nil stays nil. What the
// numbers say is checked by whoever uses the mask.
func (m *maskArrays) blockMask(req *core.AttentionRequest) (*core.BlockMask, error) {
	if m == nil {
		return nil, nil
	}
	if m.Dense != nil {
		return m.fromDense(req)
	}
	rowPtr, err := elements[int64](m.RowPtr, "row_ptr", tensor.Int64)
	if err != nil {
		return nil, err
	}
	columns, err := elements[int32](m.Columns, "columns", tensor.Int32)
	if err != nil {
		return nil, err
	}
	return &core.BlockMask{BlockSize: m.BlockSize, Heads: m.Heads, Sequences: m.Sequences, RowPtr: rowPtr, Columns: columns}, nil
}

func (m *maskArrays) fromDense(req *core.AttentionRequest) (*core.BlockMask, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	t, err := m.Dense.tensor("mask")
	if err != nil {
		return nil, err
	}
	if t.Rank() != 4 || t.Dtype() != tensor.Bool || !t.Contiguous() {
		return nil, core.Invalid("", "mask %v: want a dense bool array [batch, heads, query blocks, key blocks]", t)
	}
	return core.MaskFromDense(t.Bytes(), [4]int{t.Dim(0), t.Dim(1), t.Dim(2), t.Dim(3)}, m.BlockSize, req)
}

func elements[T int32 | int64](a *array, name string, dtype tensor.Dtype) ([]T, error) {
	t, err := a.tensor(name)
	if err != nil {
		return nil, err
	}
	if t == nil || t.Dtype() != dtype || t.Rank() != 1 || !t.Contiguous() {
		return nil, core.Invalid("", "block mask: %s: want a dense %v array of one axis", name, dtype)
	}
	if t.Len() == 0 {
		return nil, nil
	}
	return unsafe.Slice((*T)(t.Pointer()), t.Len()), nil
}

// maskHandle names a mask that Go holds for Python until it is exported: its
// arrays leave through the Arrow C data interface as tensors row_ptr and columns.
type maskHandle struct {
	BlockSize int                `json:"block_size"`
	Heads     int                `json:"heads"`
	Sequences []core.BlockExtent `json:"sequences"`
	RowPtr    int64              `json:"row_ptr"`
	Columns   int64              `json:"columns"`
}

func holdMask(m *core.BlockMask) *maskHandle {
	if m == nil {
		return nil
	}
	return &maskHandle{m.BlockSize, m.Heads, m.Sequences, holdSlice(m.RowPtr, tensor.Int64), holdSlice(m.Columns, tensor.Int32)}
}

// holdSlice wraps a slice as a tensor in the table of exports.
func holdSlice[T int32 | int64](s []T, dtype tensor.Dtype) int64 {
	if len(s) == 0 {
		s = make([]T, 0, 1)
	}
	t, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(s)), dtype, []int64{int64(len(s))}, nil, tensor.CPU)
	if err != nil {
		panic(err) // a slice is always a tensor of one axis
	}
	return exports.add(t)
}
