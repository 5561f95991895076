package merge

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// WMA weighs newer checkpoints more, in proportion to their place (PMA, arXiv
// 2505.12082): w_i = i / (N(N+1)/2).
func WMA(r *tile.Runner) core.MergeStrategy {
	return r.Linear(core.Info{
		Name:       "wma",
		Summary:    "a mean whose weights grow linearly from the oldest to the newest",
		Paper:      "arXiv:2505.12082",
		Parameters: []core.Parameter{},
	}, func(req *core.WeightsRequest) ([]float64, error) {
		weights, n := make([]float64, req.Sources), float64(req.Sources)
		for i := range weights {
			weights[i] = float64(i+1) / (n * (n + 1) / 2)
		}
		return weights, nil
	})
}
