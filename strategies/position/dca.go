package position

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

// DCA cuts the sequence into chunks shorter than the trained length c: true
// positions within a chunk and near its border with the one before, c - 1 for
// every query that looks farther (dual chunk attention, arXiv 2402.17463).
func DCA() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "dca",
		Summary: "positions within chunks, so that none reaches the trained length",
		Paper:   "arXiv:2402.17463",
		Parameters: []core.Parameter{
			trainLengthParameter(),
			{Name: "chunk", Type: core.Int, Unit: "tokens", Min: core.Bound(1), Doc: "tokens of a chunk; unset: three quarters of train_length"},
		},
	}, planDCA)
}

func planDCA(req *core.PositionRequest) (*core.PositionPlan, error) {
	trained, err := trainLength(req, "dca")
	if err != nil {
		return nil, err
	}
	chunk := max(1, trained*3/4)
	if req.Params.IsSet("chunk") {
		chunk = int64(req.Params.Int("chunk"))
	}
	if chunk >= trained {
		return nil, core.Invalid("position.dca", "chunk %d: want less than the trained length %d", chunk, trained)
	}
	within := core.Rule{Modulo: chunk, Scale: 1}
	farthest := float64(trained - 1)
	plan := plain(req)
	plan.Bands = []core.Band{
		{Chunk: chunk, Low: math.MinInt64, High: 1, Query: within, Key: within},
		{Chunk: chunk, Low: 1, High: 2, Query: core.Rule{Modulo: chunk, Scale: 1, Offset: float64(chunk), Limit: farthest}, Key: within},
		{Chunk: chunk, Low: 2, High: math.MaxInt64, Query: core.Rule{Offset: farthest}, Key: within},
	}
	return plan, nil
}
