package position

import "github.com/trivium-ml/trivium/core"

// ReRoPE stops counting at a window: every farther pair is at the window's
// distance, or grows away from it slowly (leaky ReRoPE).
func ReRoPE() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "rerope",
		Summary: "distances beyond a window all become the window, or grow slowly from it",
		Paper:   "https://github.com/bojone/rerope",
		Parameters: []core.Parameter{
			trainLengthParameter(),
			{Name: "window", Type: core.Int, Unit: "tokens", Min: core.Bound(1), Doc: "distance up to which positions are true; unset: half of train_length"},
			{Name: "leak", Type: core.Float, Default: 0.0, Min: core.Bound(0), Max: core.Bound(1), Doc: "growth of distances beyond the window, per token; 0: none"},
		},
	}, planReRoPE)
}

func planReRoPE(req *core.PositionRequest) (*core.PositionPlan, error) {
	window, err := windowOrHalf(req, "rerope")
	if err != nil {
		return nil, err
	}
	leak := req.Params.Float("leak")
	plan := plain(req)
	plan.Bands = nearAndFar(window,
		core.Rule{Scale: leak, Offset: float64(window) * (1 - leak)},
		core.Rule{Scale: leak})
	return plan, nil
}

// windowOrHalf is the parameter window, or half of the trained length.
func windowOrHalf(req *core.PositionRequest, id string) (int64, error) {
	if req.Params.IsSet("window") {
		return int64(req.Params.Int("window")), nil
	}
	trained, err := trainLength(req, id)
	return max(1, trained/2), err
}
