package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// SLERP goes from one checkpoint to another along the arc between them (Shoemake
// 1985), tensor by tensor.
func SLERP(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "slerp",
		Summary: "the point between two checkpoints on the arc through them, tensor by tensor",
		Paper:   "https://doi.org/10.1145/325165.325242",
		Parameters: []core.Parameter{
			{Name: "t", Type: core.Float, Default: 0.5, Min: core.Bound(0), Max: core.Bound(1), Doc: "way from the first checkpoint to the second"},
		},
		Notes: []string{"Tensors that point the same or the opposite way are interpolated linearly."},
	}, tile.NoBase, func(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
		if t.Sources != 2 {
			return nil, core.Invalid("merge.slerp", "%d sources: want two", t.Sources)
		}
		g, err := measure(ctx, t)
		return &tile.Plan{Weights: arc(g.cosine(0, 1), t.Params.Float("t"))}, err
	})
}

// nearlyParallel is the cosine from which an arc is taken for a line.
const nearlyParallel = 0.9995

// arc is the weights of the ends for a point on the arc between them.
func arc(cosine, t float64) []float64 {
	if math.Abs(cosine) > nearlyParallel {
		return []float64{1 - t, t}
	}
	angle := math.Acos(cosine)
	return []float64{math.Sin((1-t)*angle) / math.Sin(angle), math.Sin(t*angle) / math.Sin(angle)}
}
