package pybind

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

type mergeRequest struct {
	Engine         int64       `json:"engine"`
	Method         string      `json:"method"`
	Sources        []string    `json:"sources"`
	Base           string      `json:"base"`
	Out            string      `json:"out"`
	Weights        []float64   `json:"weights"`
	Steps          []float64   `json:"steps"`
	Params         core.Params `json:"params"`
	Dtype          string      `json:"dtype"`
	Float64        bool        `json:"float64"`
	AllowNonFinite bool        `json:"allow_non_finite"`
	Overwrite      bool        `json:"overwrite"`
	Resume         bool        `json:"resume"`
	DryRun         bool        `json:"dry_run"`
	ShardBytes     int64       `json:"shard_bytes"`
	Threads        int         `json:"threads"`
}

func merge(ctx context.Context, request string) (string, error) {
	var in mergeRequest
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, err := engines.find(in.Engine)
	if err != nil {
		return "", err
	}
	dtype := tensor.Invalid
	if in.Dtype != "" {
		if dtype, err = tensor.ParseDtype(in.Dtype); err != nil {
			return "", core.Invalid("", "%v", err)
		}
	}
	report, err := e.Merge(ctx, &core.MergeSpec{Method: in.Method, Sources: in.Sources, Base: in.Base, Out: in.Out,
		Weights: in.Weights, Steps: in.Steps, Params: in.Params, Dtype: dtype, Float64: in.Float64,
		AllowNonFinite: in.AllowNonFinite, Overwrite: in.Overwrite, Resume: in.Resume, DryRun: in.DryRun,
		ShardBytes: in.ShardBytes, Threads: in.Threads,
		Progress: func(done, total int64) { reportProgress(ctx, done, total) }})
	if err != nil {
		return "", err
	}
	return marshal(report)
}
