package main

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
)

// Strategy leaves near distances as they are and shrinks those beyond, by as
// much as brings the longest to the length that the model was trained for.
type Strategy struct{}

var _ core.PositionStrategy = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "shrunk-positions", Kind: core.Position, License: "Apache-2.0", Version: "0.1.0",
		Summary: "near distances as they are, far ones shrunk",
		Parameters: []core.Parameter{
			{Name: "near", Type: core.Int, Default: int64(512), Unit: "tokens", Min: core.Bound(1), Doc: "distances below this stay"},
			{Name: "factor", Type: core.Float, Min: core.Bound(1), Doc: "beyond, a token is 1/factor; unset: from the length of the call"},
		},
		Capabilities: core.Capabilities{Deterministic: true},
	}
}

// Plan implements core.PositionStrategy. The two bands meet at near: there, the
// shrunk distance near/factor plus the offset is near again.
func (Strategy) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	near := int64(req.Params.Int("near"))
	factor, err := factorOf(req, near)
	if err != nil {
		return nil, err
	}
	offset := float64(near) - float64(near)/factor
	return &core.PositionPlan{
		InvFreq: req.InvFreq, AppliedInvFreq: req.InvFreq, AttentionScale: 1, Interleaved: req.Interleaved,
		Bands: []core.Band{
			{Chunk: 1, Low: math.MinInt64, High: near, Query: core.Identity(), Key: core.Identity()},
			{Chunk: 1, Low: near, High: math.MaxInt64, Query: core.Rule{Scale: 1 / factor, Offset: offset}, Key: core.Rule{Scale: 1 / factor}},
		},
	}, nil
}

// factorOf is the parameter, or what makes the longest distance train_length.
func factorOf(req *core.PositionRequest, near int64) (float64, error) {
	if req.Params.IsSet("factor") {
		return req.Params.Float("factor"), nil
	}
	if req.TrainLength == 0 {
		return 0, core.Invalid("position.shrunk-positions", "the length that the model was trained for is not known").
			WithHint("pass train_length= or factor=")
	}
	if req.Length <= req.TrainLength || near >= req.TrainLength {
		return 1, nil
	}
	return float64(req.Length-near) / float64(req.TrainLength-near), nil
}
