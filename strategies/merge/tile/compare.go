package tile

import (
	"context"

	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// compared is how many elements of each source are widened at a time, so that
// all of them stay in the second-level cache.
const compared = 4 << 10

var _ core.Comparer = (*linear)(nil)

// Compare multiplies the sources with each other in float64.
func (l *linear) Compare(ctx context.Context, req *core.CompareRequest) (*core.CompareResponse, error) {
	b := newBatch(l.runner, l.info.ID(), &core.MergeRequest{Sources: req.Sources, Tensors: req.Tensors, Threads: req.Threads})
	response := &core.CompareResponse{Products: make([][]float64, len(req.Tensors))}
	for i := range req.Tensors {
		t := &req.Tensors[i]
		if err := b.check(t); err != nil {
			return nil, err
		}
		response.Products[i] = make([]float64, req.Sources*req.Sources)
		if copied(t) {
			continue
		}
		if err := b.products(ctx, i, response.Products[i]); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// products adds up the products of one tensor. Tiles are added in their order,
// so the sums do not depend on the threads.
func (b *batch) products(ctx context.Context, index int, sum []float64) error {
	jobs := tiles(index, length(b.req.Tensors[index].Shape))
	parts := make([][]float64, len(jobs))
	err := each(ctx, b.req.Threads, len(jobs), func(i int) (err error) {
		parts[i], err = b.tileProducts(ctx, jobs[i])
		return err
	})
	if err != nil {
		return err
	}
	for _, part := range parts {
		for k, p := range part {
			sum[k] += p
		}
	}
	return nil
}

func (b *batch) tileProducts(ctx context.Context, j job) ([]float64, error) {
	n := b.req.Sources
	in, err := b.mapTile(b.req.Tensors[j.tensor].Inputs, j)
	if err != nil {
		return nil, err
	}
	defer in.close()
	wide := make([][]float64, n)
	for s := range wide {
		wide[s] = make([]float64, compared)
	}
	sum := make([]float64, n*n)
	for first := int64(0); first < j.count; first += compared {
		count := min(compared, j.count-first)
		for s, v := range in.vectors {
			size := b.req.Tensors[j.tensor].Inputs[s].Dtype.Size()
			v.Data, v.Len = unsafe.Add(v.Data, first*size), count
			if err := b.widen(ctx, j, s, v, wide[s][:count]); err != nil {
				return nil, err
			}
		}
		for s := range n {
			for r := range s + 1 {
				sum[s*n+r] += dot(wide[s][:count], wide[r][:count])
			}
		}
	}
	for s := range n {
		for r := range s {
			sum[r*n+s] = sum[s*n+r]
		}
	}
	return sum, nil
}

func (b *batch) widen(ctx context.Context, j job, source int, v hardware.Vector, to []float64) error {
	out := hardware.Vector{Data: unsafe.Pointer(&to[0]), Dtype: hardware.VectorFloat64, Len: v.Len}
	bad, err := b.runner.backend.WeightedSum(ctx, []hardware.Vector{out}, []hardware.Vector{v}, [][]float64{{1}}, true, 1)
	if err != nil {
		return err
	}
	nonFinite := make([]int64, source+1)
	nonFinite[source] = bad[0]
	return b.refuse(j, nonFinite)
}

// dot has four sums, so that additions need not wait for each other.
func dot(x, y []float64) float64 {
	var a, b, c, d float64
	y = y[:len(x)]
	i := 0
	for ; i+4 <= len(x); i += 4 {
		a += x[i] * y[i]
		b += x[i+1] * y[i+1]
		c += x[i+2] * y[i+2]
		d += x[i+3] * y[i+3]
	}
	for ; i < len(x); i++ {
		a += x[i] * y[i]
	}
	return (a + b) + (c + d)
}
