// Package request makes attention requests for tests.
package request

import (
	"math"
	"math/rand/v2"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

// Shape is the size of a request.
type Shape struct {
	Batch, Heads, KVHeads, Queries, Keys, Dim int
	Dtype                                     tensor.Dtype // Invalid: float32
}

// Random makes a causal request whose queries are the last ones of the keys. A
// few keys and the nearest ones draw most of the attention, as in real models.
func Random(seed uint64, s Shape) *core.AttentionRequest {
	if s.Dtype == tensor.Invalid {
		s.Dtype = tensor.Float32
	}
	random := rand.New(rand.NewPCG(seed, 0))
	r := &core.AttentionRequest{Causal: true, Layer: -1, QueryOffset: make([]int64, s.Batch)}
	for b := range r.QueryOffset {
		r.QueryOffset[b] = int64(s.Keys - s.Queries)
	}
	r.Query = Make(s.Dtype, s.Batch, s.Heads, s.Queries, s.Dim)
	r.Key = Make(s.Dtype, s.Batch, s.KVHeads, s.Keys, s.Dim)
	r.Value = Make(s.Dtype, s.Batch, s.KVHeads, s.Keys, s.Dim)
	Fill(r.Value, func(_ [4]int) float64 { return random.NormFloat64() })
	loud := make([]float64, s.Keys)
	for j := range loud {
		loud[j] = 1
		if random.IntN(32) == 0 {
			loud[j] = 3
		}
	}
	// Slow waves along the sequence make near tokens alike.
	wave := func(at [4]int, position int) float64 {
		return math.Sin(float64(position)*0.01*float64(at[3]%7+1) + float64(at[1]*at[3]))
	}
	Fill(r.Query, func(at [4]int) float64 { return random.NormFloat64() + wave(at, at[2]+s.Keys-s.Queries) })
	Fill(r.Key, func(at [4]int) float64 { return loud[at[2]] * (0.7*random.NormFloat64() + wave(at, at[2])) })
	Outputs(r)
	return r
}

// Outputs gives a request fresh output tensors.
func Outputs(r *core.AttentionRequest) {
	q := r.Query.Shape()
	r.Output = Make(r.Query.Dtype(), int(q[0]), int(q[1]), int(q[2]), int(q[3]))
	r.LSE, _ = tensor.Make(tensor.Float32, q[:3]...)
}

// Make allocates a tensor of four axes.
func Make(d tensor.Dtype, shape ...int) *tensor.Tensor {
	wide := make([]int64, len(shape))
	for i, n := range shape {
		wide[i] = int64(n)
	}
	t, err := tensor.Make(d, wide...)
	if err != nil {
		panic(err)
	}
	return t
}

// matrix views the rows of the last axis, all others flattened.
func matrix(t *tensor.Tensor, batch, head int) hardware.Matrix {
	d := map[tensor.Dtype]hardware.Dtype{tensor.Float32: hardware.Float32, tensor.BFloat16: hardware.BFloat16, tensor.Float16: hardware.Float16}[t.Dtype()]
	at := (batch*t.Stride(0) + head*t.Stride(1)) * d.Size()
	return hardware.Matrix{Data: unsafe.Add(t.Pointer(), at), Dtype: d, Rows: t.Dim(2), Cols: t.Dim(3), Stride: t.Stride(2)}
}

// Matrices views the heads of one batch row.
func Matrices(t *tensor.Tensor, batch int) []hardware.Matrix {
	out := make([]hardware.Matrix, t.Dim(1))
	for h := range out {
		out[h] = matrix(t, batch, h)
	}
	return out
}

// Fill sets each element of a tensor of four axes.
func Fill(t *tensor.Tensor, value func(at [4]int) float64) {
	row := make([]float64, t.Dim(3))
	for b := range t.Dim(0) {
		for h := range t.Dim(1) {
			m := matrix(t, b, h)
			for r := range m.Rows {
				for c := range row {
					row[c] = value([4]int{b, h, r, c})
				}
				dtype.PutRow(m, r, row)
			}
		}
	}
}

// Row reads one row of a tensor of four axes.
func Row(t *tensor.Tensor, batch, head, row int) []float64 {
	out := make([]float64, t.Dim(3))
	dtype.Row(out, matrix(t, batch, head), row)
	return out
}

// Difference is the largest difference of two tensors of four axes.
func Difference(a, b *tensor.Tensor) float64 {
	worst := 0.0
	for n := range a.Dim(0) {
		for h := range a.Dim(1) {
			for r := range a.Dim(2) {
				x, y := Row(a, n, h, r), Row(b, n, h, r)
				for c := range x {
					worst = math.Max(worst, math.Abs(x[c]-y[c])) // a NaN stays
				}
			}
		}
	}
	return worst
}

// LSEDifference is the largest difference of two LSE tensors; rows that see
// nothing must do so in both.
func LSEDifference(a, b *tensor.Tensor) float64 {
	x, _ := a.Float32s()
	y, _ := b.Float32s()
	worst := 0.0
	for i := range x {
		if x[i] != y[i] {
			worst = math.Max(worst, math.Abs(float64(x[i])-float64(y[i])))
		}
	}
	return worst
}
