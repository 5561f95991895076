package sdktest

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/core/tensor"
)

// elements reads and writes a tensor of any strides as float64.
type elements struct {
	base    unsafe.Pointer
	dtype   tensor.Dtype
	strides []int64
}

func elementsOf(t *tensor.Tensor) elements {
	return elements{base: t.Pointer(), dtype: t.Dtype(), strides: t.Strides()}
}

func (e elements) pointer(index []int) unsafe.Pointer {
	n := int64(0)
	for i, x := range index {
		n += int64(x) * e.strides[i]
	}
	return unsafe.Add(e.base, n*e.dtype.Size())
}

func (e elements) at(index ...int) float64 {
	p := e.pointer(index)
	switch e.dtype {
	case tensor.BFloat16:
		return float64(math.Float32frombits(uint32(*(*uint16)(p)) << 16))
	case tensor.Float16:
		return halfToFloat(*(*uint16)(p))
	}
	return float64(*(*float32)(p))
}

func (e elements) set(value float64, index ...int) {
	p := e.pointer(index)
	switch e.dtype {
	case tensor.BFloat16:
		bits := math.Float32bits(float32(value))
		if value == value {
			bits += 0x7fff + bits>>16&1
		}
		*(*uint16)(p) = uint16(bits >> 16)
	case tensor.Float16:
		*(*uint16)(p) = floatToHalf(value)
	default:
		*(*float32)(p) = float32(value)
	}
}

func halfToFloat(h uint16) float64 {
	sign, exponent, fraction := 1-2*float64(h>>15), int(h>>10&31), float64(h&1023)
	switch exponent {
	case 0:
		return sign * math.Ldexp(fraction, -24)
	case 31:
		if fraction != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

// floatToHalf rounds to the nearest number that there is; ties go either way.
func floatToHalf(x float64) uint16 {
	sign := uint16(math.Float64bits(x) >> 48 & 0x8000)
	a := math.Abs(x)
	switch {
	case x != x:
		return 0x7e00
	case a >= 65520:
		return sign | 0x7c00
	case a < math.Ldexp(1, -14):
		return sign | uint16(math.Round(math.Ldexp(a, 24)))
	}
	fraction, exponent := math.Frexp(a)
	return sign | uint16(int(math.Round(math.Ldexp(fraction, 11)))-1024+(exponent+14)<<10)
}

// make4 makes a tensor in memory that the plugin sees, as [batch, heads, len, dim]
// or, transposed, as a view of [batch, len, heads, dim].
func (s *suite) make4(t *testing.T, dtype tensor.Dtype, transposed bool, batch, heads, length, dim int) *tensor.Tensor {
	t.Helper()
	b, h, n, d := int64(batch), int64(heads), int64(length), int64(dim)
	strides := []int64{h * n * d, n * d, d, 1}
	if transposed {
		strides = []int64{n * h * d, d, h * d, 1}
	}
	return s.makeStrided(t, dtype, []int64{b, h, n, d}, strides)
}

func (s *suite) makeStrided(t *testing.T, dtype tensor.Dtype, shape, strides []int64) *tensor.Tensor {
	t.Helper()
	size, err := tensor.Span(dtype, shape, strides)
	if err != nil {
		t.Fatal(err)
	}
	segment, err := s.host.Pool().Get(int(size))
	if err != nil {
		t.Fatal(err)
	}
	clear(segment.Bytes())
	x, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(segment.Bytes())), dtype, shape, strides, tensor.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.Release()
		if err := s.host.Pool().Put(segment); err != nil {
			t.Error(err)
		}
	})
	return x
}

// each calls f with every index of a tensor.
func each(x *tensor.Tensor, f func(index ...int)) {
	index := make([]int, x.Rank())
	var loop func(axis int)
	loop = func(axis int) {
		if axis == len(index) {
			f(index...)
			return
		}
		for index[axis] = range x.Dim(axis) {
			loop(axis + 1)
		}
	}
	loop(0)
}

// randomize fills a tensor with normal numbers that depend on the index alone,
// whatever its strides.
func randomize(x *tensor.Tensor, seed uint64) {
	random, e := rand.New(rand.NewPCG(seed, 1)), elementsOf(x)
	each(x, func(index ...int) { e.set(random.NormFloat64(), index...) })
}

// values are the elements in order.
func values(x *tensor.Tensor) []float64 {
	e, list := elementsOf(x), make([]float64, 0, x.Len())
	each(x, func(index ...int) { list = append(list, e.at(index...)) })
	return list
}

// farthest is the largest difference, and where it is.
func farthest(a, b []float64) (most float64, at int) {
	for i := range a {
		difference := math.Abs(a[i] - b[i])
		if a[i] == b[i] || a[i] != a[i] && b[i] != b[i] {
			difference = 0
		}
		if difference > most || difference != difference {
			most, at = difference, i
		}
		if difference != difference {
			return math.Inf(1), i
		}
	}
	return most, at
}
