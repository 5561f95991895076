package merge

import (
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// combination is how sparse differences are added to the base.
type combination struct {
	weights   []float64
	scale     float64
	consensus bool // drop the differences whose sign is not that of the weighted sum
	normalise bool // divide by the weights of those that were kept
}

// sum is the combination of all differences, for the backend.
func (c combination) sum(t *tile.Tensor) *hardware.SparseSum {
	sum := &hardware.SparseSum{Weights: c.weights, Low: make([]float32, t.Sources), High: make([]float32, t.Sources),
		Factor: 1, Scale: c.scale, Density: 1, Consensus: c.consensus, Normalise: c.normalise}
	for s := range sum.High {
		sum.High[s] = float32(math.Inf(1))
	}
	return sum
}

// add writes base + scale * sum of w_s d_s, where difference(s, i) is what is
// left of element i of source s; 0: it was dropped.
func (c combination) add(v *tile.Values, out []float32, difference func(s, i int) float64) {
	kept := make([]float64, len(c.weights))
	for i := range out {
		sum := 0.0
		for s, w := range c.weights {
			kept[s] = w * difference(s, i)
			sum += kept[s]
		}
		if c.consensus || c.normalise {
			sum = c.agreed(kept, sum)
		}
		out[i] = float32(float64(v.Base[i]) + c.scale*sum)
	}
}

// agreed is the sum of the kept terms, less those of the other sign than elected
// if there is to be consensus.
func (c combination) agreed(kept []float64, elected float64) float64 {
	sum, weight := 0.0, 0.0
	for s, k := range kept {
		if k == 0 || c.consensus && (k > 0) != (elected >= 0) {
			continue
		}
		sum, weight = sum+k, weight+c.weights[s]
	}
	if c.normalise && weight != 0 {
		sum /= weight
	}
	return sum
}

func densityParameter(otherwise float64) core.Parameter {
	return core.Parameter{Name: "density", Type: core.Float, Default: otherwise, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), Doc: "share of each difference's elements to keep"}
}

func consensusParameter(otherwise bool) core.Parameter {
	return core.Parameter{Name: "consensus", Type: core.Bool, Default: otherwise, Doc: "keep only elements whose sign is that of the weighted sum"}
}

func normaliseParameter(otherwise bool) core.Parameter {
	return core.Parameter{Name: "normalise", Type: core.Bool, Default: otherwise, Doc: "divide each element by the weights of the sources that kept it"}
}

func readCombination(t *tile.Tensor, id string) (combination, error) {
	weights, err := weightsOf(t, id)
	return combination{weights: weights, scale: t.Params.Float("scale"), consensus: t.Params.Bool("consensus"), normalise: t.Params.Bool("normalise")}, err
}
