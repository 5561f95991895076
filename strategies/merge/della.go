package merge

import (
	"cmp"
	"context"
	"math"
	"slices"

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
		Notes: []string{"Elements are ranked within rows of the last axis, and drawn as in dare. What is kept is divided by its chance."},
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
	random := newDraw(t)
	return &tile.Plan{Combine: func(v *tile.Values, out []float32) {
		pruned := make([][]float64, t.Sources)
		for s := range pruned {
			pruned[s] = make([]float64, v.Len())
			for first := 0; first < v.Len(); first += t.Row {
				last := min(first+t.Row, v.Len())
				for rank, i := range byMagnitude(v, s, first, last) {
					chance := density - epsilon
					if last-first > 1 {
						chance += 2 * epsilon * float64(rank) / float64(last-first-1)
					}
					if random.uniform(s, v.First+int64(i)) < chance {
						pruned[s][i] = v.Delta(s, i) / chance
					}
				}
			}
		}
		combine.add(v, out, func(s, i int) float64 { return pruned[s][i] })
	}}, nil
}

// byMagnitude lists elements [first, last) of a difference from the smallest.
func byMagnitude(v *tile.Values, source, first, last int) []int {
	order := make([]int, last-first)
	for k := range order {
		order[k] = first + k
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(math.Abs(v.Delta(source, a)), math.Abs(v.Delta(source, b)))
	})
	return order
}
