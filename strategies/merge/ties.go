package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// TIES trims each difference from the base to its largest elements, elects a
// sign for each place and averages those that have it (arXiv 2306.01708).
func TIES(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:       "ties",
		Summary:    "the largest differences from the base, averaged where their signs agree",
		Paper:      "arXiv:2306.01708",
		Parameters: []core.Parameter{densityParameter(0.2), sourceWeights("unset: all 1"), scaleParameter(), consensusParameter(true), normaliseParameter(true)},
		Notes:      []string{"Density is taken tensor by tensor; elements as large as the smallest one kept are kept too. Differences are computed in float32."},
	}, tile.NeedsBase, func(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
		combine, err := readCombination(t, "ties")
		if err != nil {
			return nil, err
		}
		counts := make([]int64, t.Sources)
		for s := range counts {
			counts[s] = int64(math.Round(t.Params.Float("density") * float64(t.Len)))
		}
		least, err := magnitudes(ctx, t, counts)
		sum := combine.sum(t)
		sum.Low = least
		return &tile.Plan{Sparse: sum}, err
	})
}
