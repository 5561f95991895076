package merge

import (
	"context"
	"hash/fnv"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// DARE drops random elements of each difference and scales up the rest, so that
// their mean stays (arXiv 2311.03099).
func DARE(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "dare",
		Summary: "random elements of the differences from the base, scaled up",
		Paper:   "arXiv:2311.03099",
		Parameters: []core.Parameter{densityParameter(0.5), sourceWeights("unset: all 1"), scaleParameter(), consensusParameter(false), normaliseParameter(false),
			{Name: "rescale", Type: core.Bool, Default: true, Doc: "divide what is kept by density"}, seedParameter()},
		Notes: []string{"An element is drawn by the seed, the tensor's name, the source and its place, so the same merge has the same bytes."},
	}, tile.NeedsBase, func(_ context.Context, t *tile.Tensor) (*tile.Plan, error) {
		combine, err := readCombination(t, "dare")
		if err != nil {
			return nil, err
		}
		sum := combine.sum(t)
		sum.Seed, sum.Density = seedOf(t), t.Params.Float("density")
		if t.Params.Bool("rescale") {
			sum.Factor = 1 / sum.Density
		}
		return &tile.Plan{Sparse: sum}, nil
	})
}

func seedParameter() core.Parameter {
	return core.Parameter{Name: "seed", Type: core.Int, Default: int64(0), Doc: "of what is drawn"}
}

// seedOf is what the draws of a tensor's elements begin with.
func seedOf(t *tile.Tensor) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Name)) // never fails
	return mix(h.Sum64() ^ mix(uint64(t.Params.Int("seed"))))
}

// mix is the finaliser of splitmix64: every bit of the result depends on every
// bit of x.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
