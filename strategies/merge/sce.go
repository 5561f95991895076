package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// SCE selects the elements that differ most between the checkpoints, calculates
// a weight for each checkpoint from what it has there, and erases the minority
// sign (FuseChat, arXiv 2408.07990).
func SCE(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "sce",
		Summary: "the elements that vary most, weighted by each checkpoint's share, without the minority sign",
		Paper:   "arXiv:2408.07990",
		Parameters: []core.Parameter{
			{Name: "select_topk", Type: core.Float, Default: 1.0, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), Doc: "share of elements to keep, by their variance over checkpoints"},
		},
		Notes: []string{"Elements that vary as much as the least one kept are kept too. Differences are computed in float64."},
	}, tile.NeedsBase, planSCE)
}

func planSCE(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
	count := int64(math.Round(t.Params.Float("select_topk") * float64(t.Len)))
	limits, err := thresholds(ctx, t, []int64{max(1, count)}, func(walks []hardware.Walk) error { return t.Variances(ctx, walks[0]) })
	if err != nil {
		return nil, err
	}
	squares, err := t.Squares(ctx, limits[0])
	return &tile.Plan{Majority: &tile.Majority{Limit: limits[0], Weights: shares(squares, t.Sources)}}, err
}

// shares is each source's part of the squares of the selected elements, which are
// given by tile: added in their order, they do not depend on threads.
func shares(squares [][]float64, sources int) []float64 {
	weights, total := make([]float64, sources), 0.0
	for _, tile := range squares {
		for s, square := range tile {
			weights[s], total = weights[s]+square, total+square
		}
	}
	for s := range weights {
		if total > 0 {
			weights[s] /= total
		}
	}
	return weights
}
