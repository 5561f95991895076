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

// ranked is the combination of what a draw keeps of all differences, with a chance
// for each rank in a row.
func (c combination) ranked(t *tile.Tensor, chance []float64) *hardware.RankedSum {
	return &hardware.RankedSum{Weights: c.weights, Chance: chance, Scale: c.scale, Seed: seedOf(t), Consensus: c.consensus, Normalise: c.normalise}
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
