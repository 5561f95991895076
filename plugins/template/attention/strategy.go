package main

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

// Strategy lets a query see the nearest tokens and the first ones. Replace the
// rule in Attend by yours; AttendWhere does the rest.
type Strategy struct{}

var _ core.Attender = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "plugin-name", Kind: core.Attention, License: "Apache-2.0", Version: "0.1.0",
		Summary: "the nearest tokens, and the first ones",
		Parameters: []core.Parameter{
			{Name: "recent", Type: core.Int, Default: int64(64), Unit: "tokens", Min: core.Bound(1), Doc: "nearest tokens that a query sees"},
			{Name: "sink", Type: core.Int, Default: int64(4), Unit: "tokens", Min: core.Bound(0), Doc: "tokens at the start that every query sees"},
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
	recent, sink := req.Params.Int("recent"), req.Params.Int("sink")
	response, err := sdk.AttendWhere(ctx, req, func(p sdk.Pair) bool {
		return p.Query-p.Key < recent || p.Key < sink
	})
	if err != nil {
		return nil, err
	}
	response.Report.Strategy = "attention.plugin-name"
	return response, nil
}
