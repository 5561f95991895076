package tensor

import "fmt"

// Dtype is the element type of a tensor. The values are part of the plugin
// contract (proto/v1 Dtype): append, never renumber.
type Dtype uint8

// Element types, named as in numpy and safetensors.
const (
	Invalid Dtype = iota
	Float32
	BFloat16
	Float16
	Float64
	Int64
	Int32
	Int16
	Int8
	Uint64
	Uint32
	Uint16
	Uint8
	Bool
	Float8E4M3
	Float8E5M2
)

var dtypes = [...]struct {
	name string
	size int64
}{
	Invalid: {"invalid", 0}, Float32: {"float32", 4}, BFloat16: {"bfloat16", 2}, Float16: {"float16", 2},
	Float64: {"float64", 8}, Int64: {"int64", 8}, Int32: {"int32", 4}, Int16: {"int16", 2}, Int8: {"int8", 1},
	Uint64: {"uint64", 8}, Uint32: {"uint32", 4}, Uint16: {"uint16", 2}, Uint8: {"uint8", 1}, Bool: {"bool", 1},
	Float8E4M3: {"float8_e4m3", 1}, Float8E5M2: {"float8_e5m2", 1},
}

// Size is the number of bytes of one element, 0 for an unknown dtype.
func (d Dtype) Size() int64 {
	if int(d) >= len(dtypes) {
		return 0
	}
	return dtypes[d].size
}

func (d Dtype) String() string {
	if int(d) >= len(dtypes) {
		return fmt.Sprintf("dtype(%d)", uint8(d))
	}
	return dtypes[d].name
}

// IsFloat says whether d holds real numbers.
func (d Dtype) IsFloat() bool {
	switch d {
	case Float32, BFloat16, Float16, Float64, Float8E4M3, Float8E5M2:
		return true
	}
	return false
}

// ParseDtype reads a numpy-style name such as "bfloat16".
func ParseDtype(name string) (Dtype, error) {
	for d := range dtypes {
		if d != int(Invalid) && dtypes[d].name == name {
			return Dtype(d), nil
		}
	}
	return Invalid, fmt.Errorf("dtype %q: want one of float32, bfloat16, float16, float64, int64, int32, int16, int8, uint64, uint32, uint16, uint8, bool, float8_e4m3, float8_e5m2", name)
}
