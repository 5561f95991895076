package merge

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// Linear is a weighted sum with the caller's weights, used as they are.
func Linear(r *tile.Runner) core.MergeStrategy {
	return r.Linear(core.Info{
		Name:       "linear",
		Summary:    "a weighted sum of the checkpoints with the given weights",
		Parameters: []core.Parameter{},
		Notes:      []string{"Weights are not normalised: let them add up to one unless something else is meant."},
	}, func(req *core.WeightsRequest) ([]float64, error) {
		return nil, core.Invalid("merge.linear", "no weights: want one for each of %d sources, oldest first", req.Sources).WithHint("pass weights=")
	})
}
