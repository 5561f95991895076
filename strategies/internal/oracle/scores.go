package oracle

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

func (s *session) weights(q *sequence, head, i int) ([]float64, float64) {
	weights := make([]float64, q.Key[0].Rows)
	for j := range weights {
		weights[j] = s.score(q, head, i, j)
	}
	return weights, softmax(weights, math.Inf(-1))
}

func (s *session) Representative(ctx context.Context, rows int) ([]hardware.RepresentativeScores, error) {
	out := make([]hardware.RepresentativeScores, s.slot(len(s.sequences), 0))
	err := s.each(ctx, func(sequence, head int) {
		q := &s.sequences[sequence]
		n, keys := min(rows, q.Query[head].Rows), q.Key[0].Rows
		columns, slashes := make([]float64, keys), make([]float64, keys)
		r := hardware.RepresentativeScores{Rows: n, LSE: make([]float32, n)}
		for k := range n {
			i := q.Query[head].Rows - n + k
			weights, lse := s.weights(q, head, i)
			r.LSE[k] = float32(lse)
			for j, w := range weights {
				columns[j] += w / float64(n)
				if o := q.Offset + i - j; o >= 0 && o < keys {
					slashes[o] += w / float64(n)
				}
			}
		}
		r.Columns, r.Slashes = narrow(columns), narrow(slashes)
		out[s.slot(sequence, head)] = r
	})
	return out, err
}

func (s *session) RowMass(ctx context.Context, sets []hardware.RowSet, blockSize int) ([]hardware.RowMass, error) {
	out := make([]hardware.RowMass, len(sets))
	for n, set := range sets {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		q := &s.sequences[set.Sequence]
		blocks := (q.Key[0].Rows + blockSize - 1) / blockSize
		mass := make([]float64, len(set.Rows)*blocks)
		for k, i := range set.Rows {
			weights, lse := s.weights(q, set.Head, int(i))
			for j, w := range weights {
				mass[k*blocks+j/blockSize] += w
			}
			out[n].LSE = append(out[n].LSE, float32(lse))
		}
		out[n].Mass = narrow(mass)
	}
	return out, nil
}

func (s *session) Pool(ctx context.Context, query bool, blockSize, every int) ([]hardware.Pooled, error) {
	var out []hardware.Pooled
	for i := range s.sequences {
		matrices, first := s.sequences[i].Key, 0
		if query {
			matrices, first = s.sequences[i].Query, s.sequences[i].Offset
		}
		step := hardware.PoolStep(first, every)
		for _, head := range rows(matrices) {
			var some [][]float64
			for r := 0; r < len(head); r += step {
				some = append(some, head[r])
			}
			out = append(out, pool(some, first/step, blockSize/step, matrices[0].Cols))
		}
	}
	return out, ctx.Err()
}

func pool(head [][]float64, first, blockSize, dim int) hardware.Pooled {
	if len(head) == 0 {
		return hardware.Pooled{Dim: dim}
	}
	blocks := (first+len(head)-1)/blockSize - first/blockSize + 1
	sums, counts := make([]float64, blocks*dim), make([]float64, blocks)
	for r, row := range head {
		b := (first+r)/blockSize - first/blockSize
		counts[b]++
		for c, x := range row {
			sums[b*dim+c] += x
		}
	}
	for i := range sums {
		sums[i] /= counts[i/dim]
	}
	return hardware.Pooled{Blocks: blocks, Dim: dim, Data: narrow(sums)}
}

func narrow(x []float64) []float32 {
	out := make([]float32, len(x))
	for i := range x {
		out[i] = float32(x[i])
	}
	return out
}
