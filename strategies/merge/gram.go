package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// gram is the inner products, over a whole tensor, of the sources, or of their
// differences from the base if there is one.
type gram struct {
	n       int
	product []float64 // [n, n]
}

func (g gram) at(i, j int) float64 { return g.product[i*g.n+j] }

func (g gram) norm(i int) float64 { return math.Sqrt(g.at(i, i)) }

// cosine is 0 when either is zero.
func (g gram) cosine(i, j int) float64 {
	if g.at(i, i) == 0 || g.at(j, j) == 0 {
		return 0
	}
	return g.at(i, j) / (g.norm(i) * g.norm(j))
}

// measure computes the products. Tiles are added up in order, so that the
// result does not depend on threads.
func measure(ctx context.Context, t *tile.Tensor) (gram, error) {
	n := t.Sources
	parts := make([][]float64, t.Tiles())
	err := t.Scan(ctx, func(v *tile.Values) {
		part := make([]float64, n*n)
		for i := range n {
			for j := range i + 1 {
				part[i*n+j] = dot(v, i, j)
			}
		}
		parts[v.Tile] = part
	})
	g := gram{n: n, product: make([]float64, n*n)}
	for _, part := range parts {
		for k, p := range part {
			g.product[k] += p
		}
	}
	for i := range n {
		for j := range i {
			g.product[j*n+i] = g.product[i*n+j]
		}
	}
	return g, err
}

func dot(v *tile.Values, i, j int) float64 {
	a, b := v.Sources[i], v.Sources[j]
	sum := 0.0
	if v.Base == nil {
		for k := range a {
			sum += float64(a[k]) * float64(b[k])
		}
		return sum
	}
	for k := range a {
		sum += v.Delta(i, k) * v.Delta(j, k)
	}
	return sum
}

// overBase gives the weights of sources and base for a sum of differences: what
// the differences leave of the base.
func overBase(t *tile.Tensor, weights []float64) []float64 {
	if !t.HasBase {
		return weights
	}
	rest := 1.0
	for _, w := range weights {
		rest -= w
	}
	return append(weights, rest)
}
