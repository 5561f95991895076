package sdk

import (
	"math"
	"unsafe"

	"github.com/trivium-ml/trivium/core/tensor"
)

// tensorRows reads and writes the innermost rows of a tensor, which are
// contiguous, as float64.
type tensorRows struct {
	base    unsafe.Pointer
	dtype   tensor.Dtype
	strides []int64
}

// open reports whether the dtype is one that it knows.
func (r *tensorRows) open(t *tensor.Tensor) bool {
	*r = tensorRows{base: t.Pointer(), dtype: t.Dtype(), strides: t.Strides()}
	switch r.dtype {
	case tensor.Float32, tensor.BFloat16, tensor.Float16:
		return true
	}
	return false
}

func (r *tensorRows) at(index []int) unsafe.Pointer {
	n := int64(0)
	for i, x := range index {
		n += int64(x) * r.strides[i]
	}
	return unsafe.Add(r.base, n*r.dtype.Size())
}

func (r *tensorRows) read(to []float64, index ...int) {
	p := r.at(index)
	switch r.dtype {
	case tensor.BFloat16:
		for i, bits := range unsafe.Slice((*uint16)(p), len(to)) {
			to[i] = float64(math.Float32frombits(uint32(bits) << 16))
		}
	case tensor.Float16:
		for i, bits := range unsafe.Slice((*uint16)(p), len(to)) {
			to[i] = fromHalf(bits)
		}
	default:
		for i, x := range unsafe.Slice((*float32)(p), len(to)) {
			to[i] = float64(x)
		}
	}
}

func (r *tensorRows) write(from []float64, index ...int) {
	p := r.at(index)
	switch r.dtype {
	case tensor.BFloat16:
		to := unsafe.Slice((*uint16)(p), len(from))
		for i, x := range from {
			to[i] = toBFloat(float32(x))
		}
	case tensor.Float16:
		to := unsafe.Slice((*uint16)(p), len(from))
		for i, x := range from {
			to[i] = toHalf(x)
		}
	default:
		to := unsafe.Slice((*float32)(p), len(from))
		for i, x := range from {
			to[i] = float32(x)
		}
	}
}

// toBFloat rounds to the nearest, ties to even.
func toBFloat(x float32) uint16 {
	bits := math.Float32bits(x)
	if x != x {
		return uint16(bits>>16) | 1<<6
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

func fromHalf(bits uint16) float64 {
	sign, exponent, fraction := 1-2*float64(bits>>15), int(bits>>10&31), float64(bits&1023)
	switch {
	case exponent == 0:
		return sign * math.Ldexp(fraction, -24)
	case exponent < 31:
		return sign * math.Ldexp(1024+fraction, exponent-25)
	case fraction != 0:
		return math.NaN()
	}
	return math.Inf(int(sign))
}

// toHalf rounds to the nearest, ties to even.
func toHalf(x float64) uint16 {
	sign, a := uint16(math.Float64bits(x)>>48&0x8000), math.Abs(x)
	switch {
	case x != x:
		return 0x7e00
	case a >= 65520:
		return sign | 0x7c00
	case a < math.Ldexp(1, -14):
		return sign | uint16(math.RoundToEven(math.Ldexp(a, 24)))
	}
	fraction, exponent := math.Frexp(a)
	// A fraction that rounds up to 2048 carries into the exponent, as it should.
	return sign | uint16(int(math.RoundToEven(math.Ldexp(fraction, 11)))-1024+(exponent+14)<<10)
}
