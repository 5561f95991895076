package merge

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// NuSLERP is slerp by weights rather than a fraction, and around a base if one
// is given: the arc is then between the differences from it.
func NuSLERP(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "nuslerp",
		Summary: "slerp by weights, of differences if there is a base",
		Paper:   "https://doi.org/10.1145/325165.325242",
		Parameters: []core.Parameter{
			sourceWeights("in proportion; unset: equal"),
		},
		Notes: []string{"Whole tensors are rotated, not rows by themselves."},
	}, tile.OptionalBase, func(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
		if t.Sources != 2 {
			return nil, core.Invalid("merge.nuslerp", "%d sources: want two", t.Sources)
		}
		weights, err := weightsOf(t, "nuslerp")
		if err != nil {
			return nil, err
		}
		sum := weights[0] + weights[1]
		if sum == 0 {
			return nil, core.Invalid("merge.nuslerp", "source_weights %v: want a sum other than 0", weights)
		}
		g, err := measure(ctx, t)
		return overBase(t, arc(g.cosine(0, 1), weights[1]/sum)), err
	})
}

func sourceWeights(doc string) core.Parameter {
	return core.Parameter{Name: "source_weights", Type: core.Floats, Doc: "one for each source, oldest first; " + doc}
}

// weightsOf is the parameter source_weights, all 1 when unset.
func weightsOf(t *tile.Tensor, id string) ([]float64, error) {
	weights := t.Params.Floats("source_weights")
	if weights == nil {
		weights = make([]float64, t.Sources)
		for i := range weights {
			weights[i] = 1
		}
	}
	if len(weights) != t.Sources {
		return nil, core.Invalid("merge."+id, "%d source_weights: want one for each of %d sources", len(weights), t.Sources)
	}
	return weights, nil
}
