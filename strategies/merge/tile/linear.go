package tile

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// Weigh gives the weights of sources checkpoints, oldest first.
type Weigh func(req *core.WeightsRequest) ([]float64, error)

// Linear makes a merge strategy of a function that gives weights.
func (r *Runner) Linear(info core.Info, weigh Weigh) core.MergeStrategy {
	info.Capabilities.Weights = true
	return &linear{runner: r, info: complete(info), weigh: weigh}
}

func complete(info core.Info) core.Info {
	info.Kind = core.Merge
	info.License, info.Version = "Apache-2.0", "0.1.0"
	info.Capabilities.Dtypes = []string{"float32", "bfloat16", "float16", "float64", "float8_e4m3", "float8_e5m2"}
	info.Capabilities.Deterministic = true
	return info
}

type linear struct {
	runner *Runner
	info   core.Info
	weigh  Weigh
}

var _ core.Weigher = (*linear)(nil)

func (l *linear) Info() core.Info { return l.info }

func (l *linear) Weights(_ context.Context, req *core.WeightsRequest) ([]float64, error) {
	params, err := l.info.Validate(req.Params, 0)
	if err != nil {
		return nil, err
	}
	if req.Sources < 1 {
		return nil, core.Invalid(l.info.ID(), "no sources: want at least one")
	}
	complete := *req
	complete.Params = params
	return l.weigh(&complete)
}

func (l *linear) Merge(ctx context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	weights := req.Weights
	if weights == nil {
		own, err := l.Weights(ctx, &core.WeightsRequest{Sources: req.Sources, Steps: req.Steps, Params: req.Params})
		if err != nil {
			return nil, err
		}
		weights = [][]float64{own}
	}
	for _, t := range req.Tensors {
		if len(t.Outputs) != len(weights) {
			return nil, core.Invalid(l.info.ID(), "tensor %q has %d outputs for %d rows of weights: want one for each", t.Name, len(t.Outputs), len(weights))
		}
	}
	return l.runner.run(ctx, l.info.ID(), req, func(ctx context.Context, b *batch, j job) error {
		return b.sum(ctx, j, weights)
	})
}

// sum adds up one tile of the sources for all candidates in one pass.
func (b *batch) sum(ctx context.Context, j job, weights [][]float64) error {
	in, err := b.mapPieces(b.req.Tensors[j.tensor].Inputs, j)
	if err != nil {
		return err
	}
	defer in.close()
	return b.sumOf(ctx, in, j, weights)
}

func (b *batch) sumOf(ctx context.Context, in *mapped, j job, weights [][]float64) error {
	nonFinite, outputs := make([]int64, len(in.vectors)), b.req.Tensors[j.tensor].Outputs
	for first := int64(0); first < j.count; {
		count := min(upTo(outputs[0], j.start+first, b.chunkOf(len(weights))), j.count-first)
		parts := in.part(first, count)
		if err := in.gather(parts, j.start+first, count); err != nil {
			return core.Errorf(core.ErrCheckpoint, "tensor %q: %w", b.req.Tensors[j.tensor].Name, err)
		}
		err := b.store(outputs, j.start+first, count, func(out []hardware.Vector) error {
			found, err := b.runner.backend.WeightedSum(ctx, out, parts, weights, b.req.Float64, 1)
			for s, n := range found {
				nonFinite[s] += n
			}
			return err
		})
		if err != nil {
			return err
		}
		first += count
	}
	return b.count(j, nonFinite)
}
