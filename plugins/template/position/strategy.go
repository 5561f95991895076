package main

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
)

// Strategy leaves near distances as they are and shrinks far ones.
type Strategy struct{}

var _ core.PositionStrategy = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "plugin-name", Kind: core.Position, License: "Apache-2.0", Version: "0.1.0",
		Summary: "near distances as they are, far ones shrunk",
		Parameters: []core.Parameter{
			{Name: "near", Type: core.Int, Default: int64(512), Unit: "tokens", Min: core.Bound(1), Doc: "distances below this stay"},
			{Name: "factor", Type: core.Float, Default: 2.0, Min: core.Bound(1), Doc: "beyond, a token is 1/factor"},
		},
		Capabilities: core.Capabilities{Deterministic: true},
	}
}

// Plan implements core.PositionStrategy. The two bands meet at near: there, the
// shrunk distance near/factor plus the offset is near again.
func (Strategy) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	near, factor := int64(req.Params.Int("near")), req.Params.Float("factor")
	offset := float64(near) - float64(near)/factor
	return &core.PositionPlan{
		InvFreq: req.InvFreq, AppliedInvFreq: req.InvFreq, AttentionScale: 1, Interleaved: req.Interleaved,
		Bands: []core.Band{
			{Chunk: 1, Low: math.MinInt64, High: near, Query: core.Identity(), Key: core.Identity()},
			{Chunk: 1, Low: near, High: math.MaxInt64, Query: core.Rule{Scale: 1 / factor, Offset: offset}, Key: core.Rule{Scale: 1 / factor}},
		},
	}, nil
}
