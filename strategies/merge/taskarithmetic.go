package merge

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// TaskArithmetic adds what each checkpoint learned to the base (arXiv
// 2212.04089): base + scale * sum of w_i (M_i - base).
func TaskArithmetic(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:       "taskarithmetic",
		Summary:    "the base plus the weighted differences of all checkpoints from it",
		Paper:      "arXiv:2212.04089",
		Parameters: []core.Parameter{sourceWeights("unset: all 1"), scaleParameter()},
	}, tile.NeedsBase, func(_ context.Context, t *tile.Tensor) (*tile.Plan, error) {
		weights, err := weightsOf(t, "taskarithmetic")
		if err != nil {
			return nil, err
		}
		scaled := make([]float64, len(weights))
		for i, w := range weights {
			scaled[i] = t.Params.Float("scale") * w
		}
		return overBase(t, scaled), nil
	})
}

func scaleParameter() core.Parameter {
	return core.Parameter{Name: "scale", Type: core.Float, Default: 1.0, Doc: "factor of the merged difference"}
}
