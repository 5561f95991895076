package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// Breadcrumbs drops the largest elements of each difference as outliers and the
// smallest as noise, and adds up the rest (arXiv 2312.06795).
func Breadcrumbs(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "breadcrumbs",
		Summary: "differences from the base without their largest and smallest elements",
		Paper:   "arXiv:2312.06795",
		Parameters: []core.Parameter{
			densityParameter(0.9),
			{Name: "gamma", Type: core.Float, Default: 0.01, Min: core.Bound(0), Max: core.Bound(1), OpenMax: true, Doc: "share of the largest elements to drop"},
			sourceWeights("unset: all 1"), scaleParameter(), consensusParameter(false), normaliseParameter(false),
		},
		Notes: []string{"Shares are taken tensor by tensor; of equal elements at a limit all are on the same side. Differences are computed in float32."},
	}, tile.NeedsBase, planBreadcrumbs)
}

func planBreadcrumbs(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
	combine, err := readCombination(t, "breadcrumbs")
	if err != nil {
		return nil, err
	}
	outliers := int64(math.Round(t.Params.Float("gamma") * float64(t.Len)))
	kept := int64(math.Round(t.Params.Float("density") * float64(t.Len)))
	counts := make([]int64, 2*t.Sources)
	for s := range t.Sources {
		counts[2*s], counts[2*s+1] = outliers, outliers+kept
	}
	limits, err := magnitudes(ctx, t, counts)
	sum := combine.sum(t)
	for s := range t.Sources {
		if err == nil {
			sum.High[s], sum.Low[s] = limits[2*s], limits[2*s+1]
		}
	}
	return &tile.Plan{Sparse: sum}, err
}
