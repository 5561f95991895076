package position

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

// NTK stretches slow frequencies and spares fast ones: by parts as in section
// 3.2 of YaRN's paper (arXiv 2309.00071), or by a higher base.
func NTK() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "ntk",
		Summary: "slow frequencies divided by a factor, fast ones left alone",
		Paper:   "arXiv:2309.00071",
		Parameters: []core.Parameter{
			factorParameter("how many times longer the context gets"), trainLengthParameter(),
			{Name: "variant", Type: core.String, Default: "by_parts", Choices: []string{"by_parts", "aware"}, Doc: "by_parts: by turns within train_length; aware: a higher rotary base"},
			{Name: "alpha", Type: core.Float, Default: 1.0, Min: core.Bound(0), Unit: "turns", Doc: "frequencies with fewer turns are divided by the factor (by_parts)"},
			{Name: "beta", Type: core.Float, Default: 32.0, Min: core.Bound(0), Unit: "turns", Doc: "frequencies with more turns stay (by_parts)"},
		},
	}, planNTK)
}

func planNTK(req *core.PositionRequest) (*core.PositionPlan, error) {
	factor := req.Params.Float("factor")
	if req.Params.Text("variant") == "aware" {
		return rescaled(req, raisedBase(req, factor)), nil
	}
	trained, err := trainLength(req, "ntk")
	if err != nil {
		return nil, err
	}
	alpha, beta := req.Params.Float("alpha"), req.Params.Float("beta")
	if alpha >= beta {
		return nil, core.Invalid("position.ntk", "alpha %g, beta %g: want alpha < beta", alpha, beta)
	}
	return rescaled(req, byTurns(req, float64(trained), factor, alpha, beta)), nil
}

// byTurns divides frequencies that turn fewer than low times within length by
// factor, spares those that turn more than high times, and blends between.
func byTurns(req *core.PositionRequest, length, factor, low, high float64) func(i int) float64 {
	return func(i int) float64 {
		turns := length * req.InvFreq[i] / (2 * math.Pi)
		keep := min(max((turns-low)/(high-low), 0), 1)
		return (1-keep)/factor + keep
	}
}
