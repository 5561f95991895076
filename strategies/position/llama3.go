package position

import "github.com/trivium-ml/trivium/core"

// Llama3 is the scaling of Llama 3.1 (arXiv 2407.21783): by parts, with its own
// limits.
func Llama3() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "llama3",
		Summary: "Llama 3.1's scaling: by parts, between 1 and 4 turns",
		Paper:   "arXiv:2407.21783",
		Parameters: []core.Parameter{
			{Name: "factor", Type: core.Float, Default: 8.0, Min: core.Bound(1), Doc: "how many times longer the context gets"},
			trainLengthParameter(),
			{Name: "low_freq_factor", Type: core.Float, Default: 1.0, Min: core.Bound(0), Unit: "turns", Doc: "frequencies with fewer turns are divided by the factor"},
			{Name: "high_freq_factor", Type: core.Float, Default: 4.0, Min: core.Bound(0), Unit: "turns", Doc: "frequencies with more turns stay"},
		},
	}, func(req *core.PositionRequest) (*core.PositionPlan, error) {
		trained, err := trainLength(req, "llama3")
		if err != nil {
			return nil, err
		}
		low, high := req.Params.Float("low_freq_factor"), req.Params.Float("high_freq_factor")
		if low >= high {
			return nil, core.Invalid("position.llama3", "low_freq_factor %g, high_freq_factor %g: want low < high", low, high)
		}
		return rescaled(req, byTurns(req, float64(trained), req.Params.Float("factor"), low, high)), nil
	})
}
