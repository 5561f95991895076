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

// overBase merges by weights of the sources' differences from the base, or of
// the sources themselves where there is none. Differences are small, so that the
// base, which nothing multiplies, is rounded once with the result.
func overBase(t *tile.Tensor, weights []float64) *tile.Plan {
	if !t.HasBase {
		return &tile.Plan{Weights: weights}
	}
	return &tile.Plan{Sparse: combination{weights: weights, scale: 1}.sum(t)}
}
