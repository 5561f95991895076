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

// measure computes the products.
func measure(ctx context.Context, t *tile.Tensor) (gram, error) {
	product, err := t.Products(ctx)
	return gram{n: t.Sources, product: product}, err
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
