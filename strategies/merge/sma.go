// Package merge has the ways to make one checkpoint out of several, one file
// each.
package merge

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// SMA is the plain mean (PMA, arXiv 2505.12082): w_i = 1/N.
func SMA(r *tile.Runner) core.MergeStrategy {
	return r.Linear(core.Info{
		Name:       "sma",
		Summary:    "the mean of the checkpoints",
		Paper:      "arXiv:2505.12082",
		Parameters: []core.Parameter{},
		Notes:      []string{"The paper's default: about ten checkpoints of the constant-rate phase."},
	}, func(req *core.WeightsRequest) ([]float64, error) {
		weights := make([]float64, req.Sources)
		for i := range weights {
			weights[i] = 1 / float64(req.Sources)
		}
		return weights, nil
	})
}
