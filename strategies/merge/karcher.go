package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// Karcher is the mean on the sphere: the direction whose arcs to all
// checkpoints cancel (Karcher 1977), with their mean length. The direction is a
// sum of the checkpoints, so it is found by their inner products alone.
func Karcher(r *tile.Runner) core.MergeStrategy {
	return r.Method(core.Info{
		Name:    "karcher",
		Summary: "the mean of the checkpoints' directions on the sphere, with their mean length",
		Paper:   "https://doi.org/10.1002/cpa.3160300502",
		Parameters: []core.Parameter{
			sourceWeights("in proportion; unset: equal"),
			{Name: "max_iterations", Type: core.Int, Default: int64(50), Min: core.Bound(1), Doc: "steps to take at most"},
			{Name: "tolerance", Type: core.Float, Default: 1e-9, Min: core.Bound(0), Unit: "radians", Doc: "step length at which the mean is found"},
		},
	}, tile.NoBase, planKarcher)
}

func planKarcher(ctx context.Context, t *tile.Tensor) (*tile.Plan, error) {
	weights, err := weightsOf(t, "karcher")
	if err != nil {
		return nil, err
	}
	sum := 0.0
	for _, w := range weights {
		if sum += w; w < 0 {
			return nil, core.Invalid("merge.karcher", "source_weights %v: want none below 0", weights)
		}
	}
	if sum == 0 {
		return nil, core.Invalid("merge.karcher", "source_weights %v: want a sum above 0", weights)
	}
	g, err := measure(ctx, t)
	if err != nil {
		return nil, err
	}
	share, length := make([]float64, len(weights)), 0.0
	for i, w := range weights {
		share[i] = w / sum
		length += share[i] * g.norm(i)
	}
	direction := sphereMean(g, share, t.Params.Int("max_iterations"), t.Params.Float("tolerance"))
	for i := range direction {
		if g.norm(i) > 0 { // a zero checkpoint has no direction and adds nothing
			direction[i] *= length / g.norm(i)
		}
	}
	return &tile.Plan{Weights: direction}, nil
}

// sphereMean gives the unit mean as coefficients of the unit checkpoints.
func sphereMean(g gram, share []float64, iterations int, tolerance float64) []float64 {
	x := unit(g, append([]float64(nil), share...))
	for range iterations {
		tangent := make([]float64, len(x))
		for i, w := range share {
			cosine := max(-1, min(1, along(g, x, i)))
			angle := math.Acos(cosine)
			stretch := 1.0 // of angle / sin(angle), at 0
			if s := math.Sin(angle); s > 1e-12 {
				stretch = angle / s
			}
			tangent[i] += w * stretch
			for k := range x {
				tangent[k] -= w * stretch * cosine * x[k]
			}
		}
		step := size(g, tangent)
		if step <= tolerance {
			break
		}
		for k := range x {
			x[k] = math.Cos(step)*x[k] + math.Sin(step)*tangent[k]/step
		}
		x = unit(g, x)
	}
	return x
}

// along is the inner product of the sum with coefficients x and unit checkpoint i.
func along(g gram, x []float64, i int) float64 {
	sum := 0.0
	for k, c := range x {
		sum += c * g.cosine(k, i)
	}
	return sum
}

func size(g gram, x []float64) float64 {
	sum := 0.0
	for i, c := range x {
		sum += c * along(g, x, i)
	}
	return math.Sqrt(max(0, sum))
}

func unit(g gram, x []float64) []float64 {
	if n := size(g, x); n > 0 {
		for i := range x {
			x[i] /= n
		}
	}
	return x
}
