// Package dtype reads and writes single elements of the matrices that kernels
// take. It is for the few numbers that strategies look at themselves.
package dtype

import (
	"math"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// Row widens row r of m into dst, which has m.Cols elements.
func Row[F float32 | float64](dst []F, m hardware.Matrix, r int) {
	at := unsafe.Add(m.Data, r*m.Stride*m.Dtype.Size())
	if m.Dtype == hardware.Float32 {
		for i, x := range unsafe.Slice((*float32)(at), m.Cols) {
			dst[i] = F(x)
		}
		return
	}
	for i, x := range unsafe.Slice((*uint16)(at), m.Cols) {
		dst[i] = F(widen(m.Dtype, x))
	}
}

// PutRow rounds src into row r of m, to the nearest even.
func PutRow(m hardware.Matrix, r int, src []float64) {
	at := unsafe.Add(m.Data, r*m.Stride*m.Dtype.Size())
	if m.Dtype == hardware.Float32 {
		for i := range unsafe.Slice((*float32)(at), m.Cols) {
			unsafe.Slice((*float32)(at), m.Cols)[i] = float32(src[i])
		}
		return
	}
	row := unsafe.Slice((*uint16)(at), m.Cols)
	for i := range row {
		if m.Dtype == hardware.BFloat16 {
			row[i] = ToBFloat16(float32(src[i]))
		} else {
			row[i] = ToFloat16(float32(src[i]))
		}
	}
}

func widen(d hardware.Dtype, x uint16) float32 {
	if d == hardware.BFloat16 {
		return FromBFloat16(x)
	}
	return FromFloat16(x)
}

// FromBFloat16 widens a bfloat16.
func FromBFloat16(x uint16) float32 { return math.Float32frombits(uint32(x) << 16) }

// ToBFloat16 rounds to the nearest even; NaN stays NaN.
func ToBFloat16(x float32) uint16 {
	bits := math.Float32bits(x)
	if x != x {
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// FromFloat16 widens an IEEE half.
func FromFloat16(x uint16) float32 {
	sign, exponent, fraction := uint32(x&0x8000)<<16, int(x>>10&31), x&0x3ff
	switch exponent {
	case 0:
		magnitude := math.Float32bits(float32(fraction) / (1 << 24))
		return math.Float32frombits(sign | magnitude)
	case 31:
		return math.Float32frombits(sign | 0x7f800000 | uint32(fraction)<<13)
	}
	return math.Float32frombits(sign | uint32(exponent+112)<<23 | uint32(fraction)<<13)
}

// ToFloat16 rounds to the nearest even IEEE half; too large becomes infinite.
func ToFloat16(x float32) uint16 {
	bits := math.Float32bits(x)
	sign, magnitude := uint16(bits>>16&0x8000), bits&0x7fffffff
	switch {
	case magnitude > 0x7f800000:
		return sign | 0x7e00
	case magnitude >= 0x47800000: // 65536
		return sign | 0x7c00
	case magnitude < 0x38800000: // below the smallest normal half, 2^-14
		return sign | uint16(math.RoundToEven(float64(math.Float32frombits(magnitude))*(1<<24)))
	}
	rounded := magnitude + 0xfff + magnitude>>13&1
	return sign | uint16(rounded>>13-112<<10)
}
