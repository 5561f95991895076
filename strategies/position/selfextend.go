package position

import "github.com/trivium-ml/trivium/core"

// SelfExtend counts far tokens by groups: beyond a window, distances are those
// of groups of tokens, joined on to the window (arXiv 2401.01325).
func SelfExtend() core.PositionStrategy {
	return newScheme(core.Info{
		Name:    "selfextend",
		Summary: "distances beyond a window are counted in groups of tokens",
		Paper:   "arXiv:2401.01325",
		Parameters: []core.Parameter{
			trainLengthParameter(),
			{Name: "window", Type: core.Int, Unit: "tokens", Min: core.Bound(1), Doc: "distance up to which positions are true; unset: half of train_length"},
			{Name: "group", Type: core.Int, Default: int64(4), Unit: "tokens", Min: core.Bound(1), Doc: "tokens that share a position beyond the window"},
		},
	}, planSelfExtend)
}

func planSelfExtend(req *core.PositionRequest) (*core.PositionPlan, error) {
	window, err := windowOrHalf(req, "selfextend")
	if err != nil {
		return nil, err
	}
	group := int64(req.Params.Int("group"))
	plan := plain(req)
	plan.Bands = nearAndFar(window,
		core.Rule{Group: group, Scale: 1, Offset: float64(window - window/group)},
		core.Rule{Group: group, Scale: 1})
	return plan, nil
}
