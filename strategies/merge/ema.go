package merge

import (
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// EMA is the exponential moving average A_i = alpha M_i + (1-alpha) A_{i-1}
// (PMA, arXiv 2505.12082). Seeded starts from A_1 = M_1, which leaves the oldest
// checkpoint a weight of its own; normalised divides the others' by their sum.
func EMA(r *tile.Runner) core.MergeStrategy {
	return r.Linear(core.Info{
		Name:    "ema",
		Summary: "a mean whose weights fall by a factor from each checkpoint to the one before it",
		Paper:   "arXiv:2505.12082",
		Parameters: []core.Parameter{
			{Name: "alpha", Type: core.Float, Default: 0.2, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), Doc: "weight of the newest in the recursion; the paper tests .1 and .2"},
			{Name: "variant", Type: core.String, Default: "normalised", Choices: []string{"normalised", "seeded"}, Doc: "normalised: weights in proportion; seeded: the recursion starts from the oldest checkpoint"},
		},
	}, func(req *core.WeightsRequest) ([]float64, error) {
		alpha, n := req.Params.Float("alpha"), req.Sources
		weights := make([]float64, n)
		for i := range weights {
			weights[i] = alpha * math.Pow(1-alpha, float64(n-1-i))
		}
		if req.Params.Text("variant") == "seeded" {
			weights[0] = math.Pow(1-alpha, float64(n-1))
			return weights, nil
		}
		total := 1 - math.Pow(1-alpha, float64(n))
		for i := range weights {
			weights[i] /= total
		}
		return weights, nil
	})
}
