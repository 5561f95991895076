package position

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

// LongRoPE divides each frequency by a factor of its own that was searched for:
// one list for sequences within the trained length, one for longer ones (arXiv
// 2402.13753).
func LongRoPE() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "longrope",
		Summary: "each frequency divided by a searched factor, with one list for short and one for long sequences",
		Paper:   "arXiv:2402.13753",
		Parameters: []core.Parameter{
			{Name: "long_factor", Type: core.Floats, Min: core.Bound(0), OpenMin: true, Doc: "divisors for sequences beyond train_length, one for each frequency; unset: all 1"},
			{Name: "short_factor", Type: core.Floats, Min: core.Bound(0), OpenMin: true, Doc: "divisors for sequences within train_length, one for each frequency; unset: all 1"},
			factorParameter("how many times longer the context gets; sets the attention factor"),
			trainLengthParameter(),
			{Name: "attention_factor", Type: core.Float, Min: core.Bound(0), OpenMin: true, Doc: "scale of cosines and sines; unset: sqrt(1 + ln factor / ln train_length)"},
		},
	}, planLongRoPE)
}

func planLongRoPE(req *core.PositionRequest) (*core.PositionPlan, error) {
	trained, err := trainLength(req, "longrope")
	if err != nil {
		return nil, err
	}
	name := "short_factor"
	if req.Length > trained {
		name = "long_factor"
	}
	divisors := req.Params.Floats(name)
	if divisors != nil && len(divisors) != len(req.InvFreq) {
		return nil, core.Invalid("position.longrope", "%s has %d values: want one for each of %d frequencies", name, len(divisors), len(req.InvFreq))
	}
	plan := plain(req)
	for i := range divisors {
		plan.InvFreq[i] /= divisors[i]
	}
	factor := req.Params.Float("factor")
	plan.AttentionScale = math.Sqrt(1 + math.Log(factor)/math.Log(max(2, float64(trained))))
	if req.Params.IsSet("attention_factor") {
		plan.AttentionScale = req.Params.Float("attention_factor")
	}
	return plan, nil
}
