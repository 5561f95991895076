package roundtrip

import (
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/shm"
)

// array reads and writes elements of a float32 tensor of any strides.
type array struct {
	base    unsafe.Pointer
	strides []int64
}

func strided(t *tensor.Tensor) array { return array{base: t.Pointer(), strides: t.Strides()} }

func (a array) at(index ...int64) *float32 {
	n := int64(0)
	for i, x := range index {
		n += x * a.strides[i]
	}
	return (*float32)(unsafe.Add(a.base, 4*n))
}

func mapped(operand core.MergeOperand, use func([]float32)) error {
	m, err := operand.Extent.Map(0, operand.Extent.Size)
	if err != nil {
		return err
	}
	defer m.Close()
	b := m.Bytes()
	use(unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4))
	return nil
}

// foreign is a tensor in memory of this process alone.
func foreign(t *testing.T, shape ...int64) *tensor.Tensor {
	t.Helper()
	x, err := tensor.Make(tensor.Float32, shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Release)
	return x
}

// transposed is a [batch, heads, len, dim] view of foreign memory that is laid
// out as [batch, len, heads, dim], in which len is the first of room rows.
func transposed(t *testing.T, batch, heads, length, dim, room int64) *tensor.Tensor {
	t.Helper()
	storage := foreign(t, batch, room, heads, dim)
	x, err := tensor.New(storage.Buffer(), 0, tensor.Float32, []int64{batch, heads, length, dim},
		[]int64{room * heads * dim, dim, heads * dim, 1}, tensor.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Release)
	return x
}

// shared is a tensor in a segment of the pool.
func shared(t testing.TB, pool *shm.Pool, shape ...int64) *tensor.Tensor {
	t.Helper()
	size, err := tensor.Span(tensor.Float32, shape, tensor.RowMajor(shape))
	if err != nil {
		t.Fatal(err)
	}
	segment, err := pool.Get(int(size))
	if err != nil {
		t.Fatal(err)
	}
	x, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(segment.Bytes())), tensor.Float32, shape, nil, tensor.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.Release()
		if err := pool.Put(segment); err != nil {
			t.Error(err)
		}
	})
	return x
}

// number gives the elements of a tensor distinct values.
func number(x *tensor.Tensor, seed float32) {
	a, s := strided(x), x.Shape()
	n := seed
	for b := range s[0] {
		for h := range s[1] {
			for i := range s[2] {
				for d := range s[3] {
					*a.at(b, h, i, d) = n
					n++
				}
			}
		}
	}
}
