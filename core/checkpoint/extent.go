package checkpoint

import "github.com/trivium-ml/trivium/core/tensor"

// Extent is where the tensor's bytes lie. It borrows the file, which must stay
// open, though a mapping made of it outlives Close.
func (t *Tensor) Extent(writable bool) tensor.Extent {
	return tensor.Extent{File: t.File.f, Offset: t.Offset, Size: t.Size, Writable: writable, Cut: t.cut}
}

// Numeric is the dtype to compute in; false for packed, complex and unusual
// types that nothing but the format itself knows.
func (d Dtype) Numeric() (tensor.Dtype, bool) {
	n, ok := map[Dtype]tensor.Dtype{
		F64: tensor.Float64, F32: tensor.Float32, F16: tensor.Float16, BF16: tensor.BFloat16,
		F8_E4M3: tensor.Float8E4M3, F8_E5M2: tensor.Float8E5M2,
		I64: tensor.Int64, I32: tensor.Int32, I16: tensor.Int16, I8: tensor.Int8,
		U64: tensor.Uint64, U32: tensor.Uint32, U16: tensor.Uint16, U8: tensor.Uint8, BOOL: tensor.Bool,
	}[d]
	return n, ok
}

// Stored is the format's name of a numeric dtype.
func Stored(d tensor.Dtype) Dtype {
	return map[tensor.Dtype]Dtype{
		tensor.Float64: F64, tensor.Float32: F32, tensor.Float16: F16, tensor.BFloat16: BF16,
		tensor.Float8E4M3: F8_E4M3, tensor.Float8E5M2: F8_E5M2,
		tensor.Int64: I64, tensor.Int32: I32, tensor.Int16: I16, tensor.Int8: I8,
		tensor.Uint64: U64, tensor.Uint32: U32, tensor.Uint16: U16, tensor.Uint8: U8, tensor.Bool: BOOL,
	}[d]
}
