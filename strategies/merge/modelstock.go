package merge

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// ModelStock goes from the base towards the mean as far as the angle between
// the checkpoints says that they agree (arXiv 2403.19522): with the mean cosine
// c of N differences, t = Nc / (1 + (N-1)c).
func ModelStock(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:       "modelstock",
		Summary:    "between the base and the mean, as far as the checkpoints agree",
		Paper:      "arXiv:2403.19522",
		Parameters: []core.Parameter{},
		Notes:      []string{"The cosine is the mean over all pairs of sources. A negative one counts as 0, which gives the base."},
	}, tile.NeedsBase, func(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
		if t.Sources < 2 {
			return nil, core.Invalid("merge.modelstock", "%d sources: want two or more", t.Sources)
		}
		g, err := measure(ctx, t)
		n, cosine := float64(t.Sources), 0.0
		for i := range t.Sources {
			for j := range i {
				cosine += g.cosine(i, j) / (n * (n - 1) / 2)
			}
		}
		cosine = max(0, cosine)
		weights := make([]float64, t.Sources)
		for i := range weights {
			weights[i] = cosine / (1 + (n-1)*cosine)
		}
		return overBase(t, weights), err
	})
}
