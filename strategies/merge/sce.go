package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
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
		Notes: []string{"Elements that vary as much as the least one kept are kept too. Differences are computed in float32."},
	}, tile.NeedsBase, planSCE)
}

func planSCE(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
	count := int64(math.Round(t.Params.Float("select_topk") * float64(t.Len)))
	limit, err := ranked(ctx, t, max(1, count), variance)
	if err != nil {
		return nil, err
	}
	weights, err := shares(ctx, t, limit)
	return &tile.Plan{Combine: func(v *tile.Values, out []float32) {
		for i := range out {
			out[i] = v.Base[i]
			if variance(v, i) >= limit {
				out[i] = float32(float64(v.Base[i]) + erase(v, i, weights))
			}
		}
	}}, err
}

func variance(v *tile.Values, i int) float32 {
	n, mean, squares := float64(len(v.Sources)), 0.0, 0.0
	for s := range v.Sources {
		mean += v.Delta(s, i) / n
	}
	for s := range v.Sources {
		d := v.Delta(s, i) - mean
		squares += d * d / n
	}
	return float32(squares)
}

// shares is each source's part of the squares of the selected elements.
func shares(ctx context.Context, t *tile.Tensor, limit float32) ([]float64, error) {
	parts := make([][]float64, t.Tiles())
	err := t.Scan(ctx, func(v *tile.Values) {
		part := make([]float64, t.Sources)
		for i := range v.Len() {
			if variance(v, i) < limit {
				continue
			}
			for s := range part {
				part[s] += v.Delta(s, i) * v.Delta(s, i)
			}
		}
		parts[v.Tile] = part
	})
	weights, total := make([]float64, t.Sources), 0.0
	for _, part := range parts { // in order: the sum does not depend on threads
		for s, square := range part {
			weights[s], total = weights[s]+square, total+square
		}
	}
	for s := range weights {
		if total > 0 {
			weights[s] /= total
		}
	}
	return weights, err
}

// erase is the weighted mean of the differences that have the sign of their sum.
func erase(v *tile.Values, i int, weights []float64) float64 {
	majority := 0.0
	for s := range weights {
		majority += v.Delta(s, i)
	}
	sum, weight := 0.0, 0.0
	for s, w := range weights {
		if d := v.Delta(s, i); d != 0 && (d > 0) == (majority >= 0) {
			sum, weight = sum+w*d, weight+w
		}
	}
	if weight == 0 {
		return 0
	}
	return sum / weight
}
