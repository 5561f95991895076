package merge

import (
	"math"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// WSM merges as if the learning rate had decayed over the checkpoints (arXiv
// 2507.17634): an update that checkpoint i is the first to have counts by y_i =
// D(i/N), so c_i = y_i - y_{i+1}.
func WSM(r *tile.Runner) core.MergeStrategy {
	return r.Linear(core.Info{
		Name:    "wsm",
		Summary: "weights that stand for a decay of the learning rate",
		Paper:   "arXiv:2507.17634",
		Parameters: []core.Parameter{
			{Name: "decay", Type: core.String, Default: "linear", Choices: []string{"linear", "cosine", "1-sqrt"}, Doc: "shape of the decay; linear is the plain mean"},
			{Name: "direction", Type: core.String, Default: "published", Choices: []string{"published", "reversed"}, Doc: "published: 1-sqrt favours the oldest; reversed: the weights in reverse order"},
		},
	}, weighWSM)
}

func weighWSM(req *core.WeightsRequest) ([]float64, error) {
	decay := map[string]func(x float64) float64{
		"linear": func(x float64) float64 { return 1 - x },
		"cosine": func(x float64) float64 { return (1 + math.Cos(math.Pi*x)) / 2 },
		"1-sqrt": func(x float64) float64 { return 1 - math.Sqrt(x) },
	}[req.Params.Text("decay")]
	n := float64(req.Sources)
	weights := make([]float64, req.Sources)
	for i := range weights {
		weights[i] = decay(float64(i)/n) - decay(float64(i+1)/n)
	}
	if req.Params.Text("direction") == "reversed" {
		slices.Reverse(weights)
	}
	return weights, nil
}
