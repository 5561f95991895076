package merge

import (
	"context"
	"math"

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
		var ranks ranking
		for s := range pruned {
			pruned[s] = make([]float64, v.Len())
			for first := 0; first < v.Len(); first += t.Row {
				last := min(first+t.Row, v.Len())
				for rank, i := range ranks.byMagnitude(v, s, first, last) {
					chance := density - epsilon
					if last-first > 1 {
						chance += 2 * epsilon * float64(rank) / float64(last-first-1)
					}
					if random.uniform(s, v.First+int64(i)) < chance {
						pruned[s][i] = v.Delta(s, int(i)) / chance
					}
				}
			}
		}
		combine.add(v, out, func(s, i int) float64 { return pruned[s][i] })
	}}, nil
}

// ranking sorts the elements of rows; its memory is used again.
type ranking struct {
	key, nextKey     []uint64
	order, nextOrder []int32
}

// digit is the bits of a key that one pass of the sort looks at.
const digit = 11

// byMagnitude lists elements [first, last) of a difference from the smallest,
// equal ones by their place, NaN before all. It sorts digit by digit from the
// last, and passes over digits that are all the same: of the differences of
// short dtypes most are.
func (r *ranking) byMagnitude(v *tile.Values, source, first, last int) []int32 {
	n := last - first
	if len(r.key) < n {
		r.key, r.nextKey = make([]uint64, n), make([]uint64, n)
		r.order, r.nextOrder = make([]int32, n), make([]int32, n)
	}
	key, nextKey, order, nextOrder := r.key[:n], r.nextKey[:n], r.order[:n], r.nextOrder[:n]
	varying := uint64(0)
	for k := range key {
		key[k], order[k] = 0, int32(first+k)
		if size := math.Abs(v.Delta(source, first+k)); size >= 0 {
			key[k] = math.Float64bits(size) + 1
		}
		varying |= key[k] ^ key[0]
	}
	for shift := 0; varying>>shift != 0; shift += digit {
		if varying>>shift&(1<<digit-1) == 0 {
			continue
		}
		var from [1 << digit]int32
		for _, k := range key {
			from[k>>shift&(1<<digit-1)]++
		}
		at := int32(0)
		for d, count := range from {
			from[d], at = at, at+count
		}
		for k, x := range key {
			to := &from[x>>shift&(1<<digit-1)]
			nextKey[*to], nextOrder[*to] = x, order[k]
			*to++
		}
		key, nextKey, order, nextOrder = nextKey, key, nextOrder, order
	}
	return order
}
