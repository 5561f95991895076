package main

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

// Strategy averages checkpoints with weights that fall from the newest on.
type Strategy struct{}

var _ core.Weigher = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "plugin-name", Kind: core.Merge, License: "Apache-2.0", Version: "0.1.0",
		Summary: "a mean in which each older checkpoint counts less",
		Parameters: []core.Parameter{
			{Name: "decay", Type: core.Float, Default: 0.5, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), Doc: "weight of a checkpoint over that of the next newer"},
		},
		Capabilities: core.Capabilities{Dtypes: []string{"float32"}, Deterministic: true},
	}
}

// Weights implements core.Weigher.
func (Strategy) Weights(_ context.Context, req *core.WeightsRequest) ([]float64, error) {
	weights, sum, w := make([]float64, req.Sources), 0.0, 1.0
	for i := req.Sources - 1; i >= 0; i-- {
		weights[i] = w
		sum, w = sum+w, w*req.Params.Float("decay")
	}
	for i := range weights {
		weights[i] /= sum
	}
	return weights, nil
}

// Merge implements core.MergeStrategy.
func (s Strategy) Merge(ctx context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	weights := req.Weights // a row for each candidate
	if weights == nil {
		own, err := s.Weights(ctx, &core.WeightsRequest{Sources: req.Sources, Steps: req.Steps, Params: req.Params})
		if err != nil {
			return nil, err
		}
		weights = [][]float64{own}
	}
	return sdk.MergeTiles(ctx, req, func(candidate int, inputs [][]float32, out []float32) {
		w := weights[min(candidate, len(weights)-1)]
		for j := range out {
			sum := 0.0
			for i, x := range inputs {
				sum += w[i] * float64(x[j])
			}
			out[j] = float32(sum)
		}
	})
}
