package main

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

// Strategy is a sliding window with dilation (Longformer, arXiv 2004.05150): a
// query sees every token nearby, and farther back each dilation-th one, until it
// has seen window tokens of either.
type Strategy struct{}

var _ core.Attender = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "dilated-window", Kind: core.Attention, License: "Apache-2.0", Version: "0.1.0", Paper: "arXiv:2004.05150",
		Summary: "a sliding window, and a dilated one behind it",
		Parameters: []core.Parameter{
			{Name: "window", Type: core.Int, Default: int64(64), Unit: "tokens", Min: core.Bound(1), Doc: "tokens that a query sees of each window"},
			{Name: "dilation", Type: core.Int, Default: int64(4), Unit: "tokens", Min: core.Bound(1), Doc: "steps of the second window"},
		},
		Capabilities: core.Capabilities{
			Dtypes: []string{"float32", "bfloat16", "float16"}, Devices: []string{"cpu"},
			GQA: true, Varlen: true, Chunked: true, Deterministic: true, ChunkRule: "same",
		},
	}
}

// Select implements core.AttentionStrategy: the rule is by token, so that no
// tile can be left out for what it says alone.
func (Strategy) Select(context.Context, *core.AttentionRequest) (*core.Selection, error) {
	return &core.Selection{Reason: "the rule is by token, not by tile"}, nil
}

// Attend implements core.Attender.
func (Strategy) Attend(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	window, dilation := req.Params.Int("window"), req.Params.Int("dilation")
	response, err := sdk.AttendWhere(ctx, req, func(p sdk.Pair) bool {
		distance := p.Query - p.Key
		return distance < window || distance%dilation == 0 && distance < window*(1+dilation)
	})
	if err != nil {
		return nil, err
	}
	response.Report.Strategy = "attention.dilated-window"
	return response, nil
}
