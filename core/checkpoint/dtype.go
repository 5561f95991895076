package checkpoint

import "math/bits"

// Dtype is an element type, spelled as safetensors spells it.
type Dtype string

// The element types of the format.
const (
	BOOL        Dtype = "BOOL"
	F4          Dtype = "F4"
	F6_E2M3     Dtype = "F6_E2M3"
	F6_E3M2     Dtype = "F6_E3M2"
	U8          Dtype = "U8"
	I8          Dtype = "I8"
	F8_E5M2     Dtype = "F8_E5M2"
	F8_E4M3     Dtype = "F8_E4M3"
	F8_E8M0     Dtype = "F8_E8M0"
	F8_E4M3FNUZ Dtype = "F8_E4M3FNUZ"
	F8_E5M2FNUZ Dtype = "F8_E5M2FNUZ"
	I16         Dtype = "I16"
	U16         Dtype = "U16"
	F16         Dtype = "F16"
	BF16        Dtype = "BF16"
	I32         Dtype = "I32"
	U32         Dtype = "U32"
	F32         Dtype = "F32"
	C64         Dtype = "C64"
	F64         Dtype = "F64"
	I64         Dtype = "I64"
	U64         Dtype = "U64"
)

// dtypes is in the reference writer's order: a file holds its tensors by falling
// rank, so that wide elements come first and every tensor stays aligned.
var dtypes = [...]struct {
	dtype Dtype
	bits  uint64
}{
	{BOOL, 8}, {F4, 4}, {F6_E2M3, 6}, {F6_E3M2, 6}, {U8, 8}, {I8, 8}, {F8_E5M2, 8}, {F8_E4M3, 8},
	{F8_E8M0, 8}, {F8_E4M3FNUZ, 8}, {F8_E5M2FNUZ, 8}, {I16, 16}, {U16, 16}, {F16, 16}, {BF16, 16},
	{I32, 32}, {U32, 32}, {F32, 32}, {C64, 64}, {F64, 64}, {I64, 64}, {U64, 64},
}

// Valid reports whether d is a type of the format.
func (d Dtype) Valid() bool { return d.rank() >= 0 }

// Bits is the width of one element; 0 for an unknown type. F4 and F6 are packed.
func (d Dtype) Bits() int {
	if i := d.rank(); i >= 0 {
		return int(dtypes[i].bits)
	}
	return 0
}

func (d Dtype) rank() int {
	for i := range dtypes {
		if dtypes[i].dtype == d {
			return i
		}
	}
	return -1
}

// byteSize is the size of a tensor; false when the type is unknown or the size is
// negative, overflows or is not a whole number of bytes. The order of the checks is
// the reference reader's: an overflow before a zero axis is still an overflow.
func byteSize(d Dtype, shape []int64) (int64, bool) {
	elements := uint64(1)
	for _, n := range shape {
		hi, lo := bits.Mul64(elements, uint64(n))
		if n < 0 || hi != 0 {
			return 0, false
		}
		elements = lo
	}
	hi, size := bits.Mul64(elements, uint64(d.Bits()))
	return int64(size / 8), d.Valid() && hi == 0 && size%8 == 0 // so below 2^61
}
