package merge

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// DELLA drops random elements of each difference like DARE, small ones more
// often than large ones, and averages where signs agree (arXiv 2406.11617).
func DELLA(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "della",
		Summary: "random elements of the differences from the base, large ones more often, where their signs agree",
		Paper:   "arXiv:2406.11617",
		Parameters: []core.Parameter{densityParameter(0.5),
			{Name: "epsilon", Type: core.Float, Default: 0.1, Min: core.Bound(0), Max: core.Bound(0.5), Doc: "the chance to be kept goes from density - epsilon, for the smallest of a row, to density + epsilon"},
			sourceWeights("unset: all 1"), scaleParameter(), consensusParameter(true), normaliseParameter(true), seedParameter()},
		Notes: []string{"Elements are ranked within rows of the last axis, equal ones by their place, and drawn as in dare. What is kept is divided by its chance."},
	}, tile.NeedsBase, planDELLA)
}

func planDELLA(_ context.Context, t *tile.Tensor) (*tile.Plan, error) {
	combine, err := readCombination(t, "della")
	if err != nil {
		return nil, err
	}
	density, epsilon := t.Params.Float("density"), t.Params.Float("epsilon")
	if density-epsilon <= 0 || density+epsilon > 1 {
		return nil, core.Invalid("merge.della", "density %g, epsilon %g: want density - epsilon above 0 and density + epsilon at most 1", density, epsilon)
	}
	return &tile.Plan{Ranked: combine.ranked(t, chances(density, epsilon, t.Row))}, nil
}

// chances are those of the elements of a row, from the smallest: they rise evenly
// by 2 epsilon.
func chances(density, epsilon float64, row int) []float64 {
	list := make([]float64, row)
	for rank := range list {
		list[rank] = density - epsilon
		if row > 1 {
			list[rank] += 2 * epsilon * float64(rank) / float64(row-1)
		}
	}
	return list
}
