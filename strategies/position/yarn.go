package position

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

// YaRN blends by dimension between stretched and true frequencies and sharpens
// the softmax (arXiv 2309.00071).
func YaRN() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "yarn",
		Summary: "slow frequencies divided by a factor, blended by dimension, with a sharper softmax",
		Paper:   "arXiv:2309.00071",
		Parameters: []core.Parameter{
			factorParameter("how many times longer the context gets"), trainLengthParameter(),
			{Name: "attention_factor", Type: core.Float, Min: core.Bound(0), OpenMin: true, Doc: "scale of cosines and sines; unset: .1 ln factor + 1"},
			{Name: "beta_fast", Type: core.Float, Default: 32.0, Min: core.Bound(0), OpenMin: true, Unit: "turns", Doc: "frequencies with more turns stay"},
			{Name: "beta_slow", Type: core.Float, Default: 1.0, Min: core.Bound(0), OpenMin: true, Unit: "turns", Doc: "frequencies with fewer turns are divided by the factor"},
			{Name: "truncate", Type: core.Bool, Default: true, Doc: "round the limits of the blend to whole dimensions"},
			{Name: "mscale", Type: core.Float, Default: 0.0, Min: core.Bound(0), Doc: "DeepSeek's numerator of the attention factor; 0: none"},
			{Name: "mscale_all_dim", Type: core.Float, Default: 0.0, Min: core.Bound(0), Doc: "and its denominator; 0: none"},
		},
	}, planYaRN)
}

func planYaRN(req *core.PositionRequest) (*core.PositionPlan, error) {
	trained, err := trainLength(req, "yarn")
	if err != nil {
		return nil, err
	}
	if len(req.InvFreq) < 2 || req.InvFreq[0] <= req.InvFreq[1] {
		return nil, core.Invalid("position.yarn", "inv_freq %v: want two or more falling frequencies", req.InvFreq)
	}
	factor := req.Params.Float("factor")
	low := yarnDimension(req, float64(trained), req.Params.Float("beta_fast"))
	high := yarnDimension(req, float64(trained), req.Params.Float("beta_slow"))
	if req.Params.Bool("truncate") {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(2*len(req.InvFreq)-1))
	if low == high {
		high += 0.001
	}
	plan := rescaled(req, func(i int) float64 {
		stretch := min(max((float64(i)-low)/(high-low), 0), 1)
		return stretch/factor + 1 - stretch
	})
	plan.AttentionScale = yarnScale(req.Params, factor)
	return plan, nil
}

// yarnDimension is the index, with a fraction, of the frequency that turns so
// many times within length.
func yarnDimension(req *core.PositionRequest, length, turns float64) float64 {
	step := math.Log(req.InvFreq[0] / req.InvFreq[1])
	return math.Log(length*req.InvFreq[0]/(turns*2*math.Pi)) / step
}

func yarnScale(p core.Params, factor float64) float64 {
	if p.IsSet("attention_factor") {
		return p.Float("attention_factor")
	}
	sharpen := func(mscale float64) float64 { return 0.1*mscale*math.Log(factor) + 1 }
	if up, down := p.Float("mscale"), p.Float("mscale_all_dim"); up > 0 && down > 0 {
		return sharpen(up) / sharpen(down)
	}
	return sharpen(1)
}
