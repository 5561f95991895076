// Package operand makes files of numbers for tests of merges.
package operand

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

// lead is what comes before the numbers in each file, so that extents do not
// start at a page.
const lead = 24

// New writes values, rounded to d, to a file of their own.
func New(t testing.TB, name string, d tensor.Dtype, values []float64) core.MergeOperand {
	t.Helper()
	data := make([]byte, lead, lead+int64(len(values))*d.Size())
	for _, v := range values {
		switch d {
		case tensor.Float64:
			data = binary.LittleEndian.AppendUint64(data, math.Float64bits(v))
		case tensor.Float32:
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(v)))
		case tensor.BFloat16:
			data = binary.LittleEndian.AppendUint16(data, dtype.ToBFloat16(float32(v)))
		case tensor.Float16:
			data = binary.LittleEndian.AppendUint16(data, dtype.ToFloat16(float32(v)))
		case tensor.Int64:
			data = binary.LittleEndian.AppendUint64(data, uint64(int64(v)))
		default:
			t.Fatalf("operand of %v", d)
		}
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return core.MergeOperand{Dtype: d, Extent: tensor.Extent{File: file, Offset: lead, Size: int64(len(data)) - lead, Writable: true}}
}

// Bytes reads the operand's bytes.
func Bytes(t testing.TB, o core.MergeOperand) []byte {
	t.Helper()
	data := make([]byte, o.Extent.Size)
	if _, err := o.Extent.File.ReadAt(data, o.Extent.Offset); err != nil {
		t.Fatal(err)
	}
	return data
}

// Values reads the operand's numbers.
func Values(t testing.TB, o core.MergeOperand) []float64 {
	t.Helper()
	data, size := Bytes(t, o), int(o.Dtype.Size())
	values := make([]float64, len(data)/size)
	for i := range values {
		at := data[i*size:]
		switch o.Dtype {
		case tensor.Float64:
			values[i] = math.Float64frombits(binary.LittleEndian.Uint64(at))
		case tensor.Float32:
			values[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(at)))
		case tensor.BFloat16:
			values[i] = float64(dtype.FromBFloat16(binary.LittleEndian.Uint16(at)))
		case tensor.Float16:
			values[i] = float64(dtype.FromFloat16(binary.LittleEndian.Uint16(at)))
		case tensor.Int64:
			values[i] = float64(int64(binary.LittleEndian.Uint64(at)))
		}
	}
	return values
}

// Rounded is values as they are after a trip through dtype d.
func Rounded(d tensor.Dtype, values []float64) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		switch d {
		case tensor.Float32:
			v = float64(float32(v))
		case tensor.BFloat16:
			v = float64(dtype.FromBFloat16(dtype.ToBFloat16(float32(v))))
		case tensor.Float16:
			v = float64(dtype.FromFloat16(dtype.ToFloat16(float32(v))))
		}
		out[i] = v
	}
	return out
}
