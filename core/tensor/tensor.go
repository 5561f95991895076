// Package tensor describes numbers in memory: a dtype, a shape, strides and a
// device over an Arrow buffer. It is the only package that imports Arrow.
package tensor

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Tensor is a strided view of a buffer. Views share the buffer; each holder
// that outlives the call it was given the tensor in must Retain it and Release
// it again. A Tensor is immutable; the numbers behind it are not.
type Tensor struct {
	dtype   Dtype
	shape   []int64
	strides []int64 // in elements
	offset  int64   // bytes from the start of the buffer to element zero
	device  Device
	buffer  *memory.Buffer
}

// New views buf, which it retains, as a tensor. strides are in elements, nil
// for row-major; offset is in bytes. It fails when an element would lie
// outside of buf.
func New(buf *memory.Buffer, offset int64, dtype Dtype, shape, strides []int64, device Device) (*Tensor, error) {
	if dtype.Size() == 0 {
		return nil, fmt.Errorf("%v: not an element type", dtype)
	}
	if strides == nil {
		strides = RowMajor(shape)
	}
	span, err := Span(dtype, shape, strides)
	if err != nil {
		return nil, err
	}
	if offset < 0 || span > math.MaxInt64-offset || offset+span > int64(buf.Len()) {
		return nil, fmt.Errorf("shape %v with strides %v at byte %d needs %d bytes: the buffer has %d", shape, strides, offset, span, buf.Len())
	}
	buf.Retain()
	return &Tensor{dtype: dtype, shape: slices.Clone(shape), strides: slices.Clone(strides), offset: offset, device: device, buffer: buf}, nil
}

// Make allocates a zeroed row-major tensor in Go memory.
func Make(dtype Dtype, shape ...int64) (*Tensor, error) {
	span, err := Span(dtype, shape, RowMajor(shape))
	if err != nil {
		return nil, err
	}
	// Eight-byte words keep every dtype aligned.
	words := make([]uint64, (span+7)/8+1)
	buf := memory.NewBufferBytes(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), span))
	defer buf.Release()
	return New(buf, 0, dtype, shape, nil, CPU)
}

// Borrow views memory that somebody else owns and keeps alive and in place for
// as long as the tensor is used, such as an array of the Python caller.
func Borrow(address unsafe.Pointer, dtype Dtype, shape, strides []int64, device Device) (*Tensor, error) {
	if strides == nil {
		strides = RowMajor(shape)
	}
	span, err := Span(dtype, shape, strides)
	if err != nil {
		return nil, err
	}
	if address == nil && span > 0 {
		return nil, fmt.Errorf("shape %v at a null address", shape)
	}
	buf := memory.NewBufferBytes(unsafe.Slice((*byte)(address), span))
	defer buf.Release()
	return New(buf, 0, dtype, shape, strides, device)
}

// RowMajor returns the strides, in elements, of a dense row-major tensor.
func RowMajor(shape []int64) []int64 {
	strides := make([]int64, len(shape))
	step := int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		strides[i] = step
		step *= max(shape[i], 1)
	}
	return strides
}

// Span is the number of bytes from element zero to the end of the last
// element, 0 when the shape is empty. Negative extents or strides and
// overflow are errors.
func Span(dtype Dtype, shape, strides []int64) (int64, error) {
	if len(shape) != len(strides) {
		return 0, fmt.Errorf("%d strides for %d axes", len(strides), len(shape))
	}
	last, empty := uint64(0), false
	for i, n := range shape {
		if n < 0 {
			return 0, fmt.Errorf("shape %v: axis %d is negative", shape, i)
		}
		if strides[i] < 0 {
			return 0, fmt.Errorf("strides %v: axis %d is negative; make a contiguous copy first", strides, i)
		}
		if n == 0 {
			empty = true
			continue
		}
		high, step := bits.Mul64(uint64(n-1), uint64(strides[i]))
		sum, carry := bits.Add64(last, step, 0)
		if high != 0 || carry != 0 {
			return 0, fmt.Errorf("shape %v with strides %v overflows", shape, strides)
		}
		last = sum
	}
	if empty {
		return 0, nil
	}
	high, span := bits.Mul64(last+1, uint64(dtype.Size()))
	if high != 0 || span > math.MaxInt64 {
		return 0, fmt.Errorf("shape %v with strides %v overflows", shape, strides)
	}
	return int64(span), nil
}

// Dtype is the element type.
func (t *Tensor) Dtype() Dtype { return t.dtype }

// Device is where the memory lies.
func (t *Tensor) Device() Device { return t.device }

// Rank is the number of axes.
func (t *Tensor) Rank() int { return len(t.shape) }

// Shape is the extent of each axis; do not modify it.
func (t *Tensor) Shape() []int64 { return t.shape }

// Strides is the step of each axis in elements; do not modify it.
func (t *Tensor) Strides() []int64 { return t.strides }

// Dim is the extent of axis i.
func (t *Tensor) Dim(i int) int { return int(t.shape[i]) }

// Stride is the step of axis i in elements.
func (t *Tensor) Stride(i int) int { return int(t.strides[i]) }

// Len is the number of elements.
func (t *Tensor) Len() int64 {
	n := int64(1)
	for _, d := range t.shape {
		n *= d
	}
	return n
}

// Span is the number of bytes from the first element to the end of the last.
func (t *Tensor) Span() int64 {
	span, _ := Span(t.dtype, t.shape, t.strides)
	return span
}

// Bytes is the memory from the first element to the end of the last, gaps
// between strided elements included. On a device it must not be looked at.
func (t *Tensor) Bytes() []byte {
	return t.buffer.Bytes()[t.offset : t.offset+t.Span()]
}

// Pointer is the address of element zero, nil for an empty tensor. On a device
// it is the device's.
func (t *Tensor) Pointer() unsafe.Pointer {
	if t.Span() == 0 {
		return nil
	}
	return unsafe.Pointer(&t.buffer.Bytes()[t.offset])
}

// Contiguous says whether the elements are dense and row-major.
func (t *Tensor) Contiguous() bool {
	want := RowMajor(t.shape)
	for i, n := range t.shape {
		if n > 1 && t.strides[i] != want[i] {
			return false
		}
	}
	return true
}

// Index views position i of the first axis, one axis fewer. The view shares
// and retains the buffer.
func (t *Tensor) Index(i int) (*Tensor, error) {
	v, err := t.Narrow(0, i, 1)
	if err != nil {
		return nil, err
	}
	v.shape, v.strides = v.shape[1:], v.strides[1:]
	return v, nil
}

// Narrow views positions [start, start+length) of one axis. The view shares
// and retains the buffer.
func (t *Tensor) Narrow(axis, start, length int) (*Tensor, error) {
	if axis < 0 || axis >= len(t.shape) {
		return nil, fmt.Errorf("axis %d: the tensor has %d", axis, len(t.shape))
	}
	if start < 0 || length < 0 || int64(start)+int64(length) > t.shape[axis] {
		return nil, fmt.Errorf("positions [%d, %d) of axis %d: it has %d", start, start+length, axis, t.shape[axis])
	}
	shape := slices.Clone(t.shape)
	shape[axis] = int64(length)
	offset := t.offset
	if length > 0 {
		offset += int64(start) * t.strides[axis] * t.dtype.Size()
	}
	return New(t.buffer, offset, t.dtype, shape, t.strides, t.device)
}

// Buffer is the Arrow buffer below the tensor, borrowed.
func (t *Tensor) Buffer() *memory.Buffer { return t.buffer }

// Retain adds a holder of the memory.
func (t *Tensor) Retain() { t.buffer.Retain() }

// Release drops a holder; the last one returns the memory.
func (t *Tensor) Release() { t.buffer.Release() }

// Float32s is a dense float32 tensor as a slice that shares its memory.
func (t *Tensor) Float32s() ([]float32, error) {
	if t.dtype != Float32 || !t.Contiguous() {
		return nil, fmt.Errorf("%v with strides %v: want dense float32", t.dtype, t.strides)
	}
	if t.Len() == 0 {
		return nil, nil
	}
	return unsafe.Slice((*float32)(t.Pointer()), t.Len()), nil
}

func (t *Tensor) String() string {
	return fmt.Sprintf("%v%v on %s", t.dtype, t.shape, t.device)
}
