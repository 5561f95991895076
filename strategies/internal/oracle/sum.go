package oracle

import (
	"context"
	"fmt"
	"math"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

// WeightedSum adds in float64 and rounds once, whatever wide says.
func (Backend) WeightedSum(ctx context.Context, out, in []hardware.Vector, weights [][]float64, _ bool, _ int) ([]int64, error) {
	wide, nonFinite := make([][]float64, len(in)), make([]int64, len(in))
	for s, v := range in {
		x, err := widen(v)
		if err != nil {
			return nil, err
		}
		wide[s] = x
		for _, f := range x {
			if math.IsNaN(f) || math.IsInf(f, 0) {
				nonFinite[s]++
			}
		}
	}
	for c, v := range out {
		sum := make([]float64, v.Len)
		for s := range in {
			for i, x := range wide[s] {
				sum[i] += weights[c][s] * x
			}
		}
		if err := store(v, sum); err != nil {
			return nil, err
		}
	}
	return nonFinite, ctx.Err()
}

func widen(v hardware.Vector) ([]float64, error) {
	out := make([]float64, v.Len)
	if v.Dtype == hardware.VectorFloat64 {
		copy(out, unsafe.Slice((*float64)(v.Data), v.Len))
		return out, nil
	}
	m, err := asMatrix(v)
	if err != nil || v.Len == 0 {
		return out, err
	}
	dtype.Row(out, m, 0)
	return out, nil
}

func store(v hardware.Vector, x []float64) error {
	if v.Dtype == hardware.VectorFloat64 {
		copy(unsafe.Slice((*float64)(v.Data), v.Len), x)
		return nil
	}
	m, err := asMatrix(v)
	if err != nil || v.Len == 0 {
		return err
	}
	dtype.PutRow(m, 0, x)
	return nil
}

func asMatrix(v hardware.Vector) (hardware.Matrix, error) {
	m := hardware.Matrix{Data: v.Data, Rows: 1, Cols: int(v.Len)}
	switch v.Dtype {
	case hardware.VectorFloat32:
		m.Dtype = hardware.Float32
	case hardware.VectorBFloat16:
		m.Dtype = hardware.BFloat16
	case hardware.VectorFloat16:
		m.Dtype = hardware.Float16
	default:
		return m, fmt.Errorf("oracle: vector dtype %d: want a float of 16, 32 or 64 bits", v.Dtype)
	}
	return m, nil
}
