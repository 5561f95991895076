package position

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

// Dynamic raises the rotary base with the length of the sequence once it is
// longer than training (dynamic NTK scaling).
func Dynamic() core.PositionStrategy {
	return newScheme(core.Info{
		Name:       "dynamic",
		Summary:    "the rotary base grows with the sequence, from the trained length on",
		Paper:      "https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr",
		Parameters: []core.Parameter{factorParameter("growth of the stretch with the length"), trainLengthParameter()},
		Notes:      []string{"A cache stays valid when the sequence grows: keys keep their true rotation and the rest is applied in the kernel."},
	}, func(req *core.PositionRequest) (*core.PositionPlan, error) {
		trained, err := trainLength(req, "dynamic")
		if err != nil {
			return nil, err
		}
		factor := req.Params.Float("factor")
		length := float64(max(req.Length, trained))
		return rescaled(req, raisedBase(req, factor*length/float64(trained)-(factor-1))), nil
	})
}

// raisedBase is the effect of multiplying the rotary base by
// stretch^(d/(d-2)): the slowest frequency is divided by stretch, the fastest
// stays.
func raisedBase(req *core.PositionRequest, stretch float64) func(i int) float64 {
	slowest := float64(max(len(req.InvFreq)-1, 1))
	return func(i int) float64 { return math.Pow(stretch, -float64(i)/slowest) }
}
