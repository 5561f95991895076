package position

import "github.com/trivium-ml/trivium/core"

// Linear interpolates positions: all distances shrink by a factor (arXiv
// 2306.15595).
func Linear() core.PositionStrategy {
	return newScheme(core.Info{
		Name:       "linear",
		Summary:    "all positions divided by a factor",
		Paper:      "arXiv:2306.15595",
		Parameters: []core.Parameter{factorParameter("how many times longer the context gets")},
	}, func(req *core.PositionRequest) (*core.PositionPlan, error) {
		factor := req.Params.Float("factor")
		return rescaled(req, func(int) float64 { return 1 / factor }), nil
	})
}
