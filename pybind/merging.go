package pybind

import (
	"context"
	"regexp"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

type mergeRequest struct {
	Engine         int64       `json:"engine"`
	Method         string      `json:"method"`
	Sources        []string    `json:"sources"`
	Base           string      `json:"base"`
	Out            string      `json:"out"`
	ModelKey       string      `json:"model_key"`
	ConfigFrom     string      `json:"config_from"`
	Weights        []float64   `json:"weights"`
	Steps          []float64   `json:"steps"`
	Params         core.Params `json:"params"`
	Dtype          string      `json:"dtype"`
	Float64        bool        `json:"float64"`
	AllowNonFinite bool        `json:"allow_non_finite"`
	Overwrite      bool        `json:"overwrite"`
	Resume         bool        `json:"resume"`
	Volatile       bool        `json:"volatile"`
	DryRun         bool        `json:"dry_run"`
	ShardBytes     int64       `json:"shard_bytes"`
	Threads        int         `json:"threads"`
}

// spec is what the request asks for, and the engine to do it.
func (in *mergeRequest) spec(ctx context.Context) (*engine, *core.MergeSpec, error) {
	e, err := engines.find(in.Engine)
	if err != nil {
		return nil, nil, err
	}
	dtype, err := dtypeOf(in.Dtype)
	if err != nil {
		return nil, nil, err
	}
	return e, &core.MergeSpec{Method: in.Method, Sources: in.Sources, Base: in.Base, Out: in.Out, ModelKey: in.ModelKey, ConfigFrom: in.ConfigFrom,
		Weights: in.Weights, Steps: in.Steps, Params: in.Params, Dtype: dtype, Float64: in.Float64,
		AllowNonFinite: in.AllowNonFinite, Overwrite: in.Overwrite, Resume: in.Resume, Volatile: in.Volatile, DryRun: in.DryRun,
		ShardBytes: in.ShardBytes, Threads: in.Threads,
		Progress: func(done, total int64) { reportProgress(ctx, done, total) }}, nil
}

func merge(ctx context.Context, request string) (string, error) {
	var in mergeRequest
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, spec, err := in.spec(ctx)
	if err != nil {
		return "", err
	}
	return marshalled(e.Merge(ctx, spec))
}

// A merge in parts: begun and finished by one process, each part done by any.
type partRequest struct {
	mergeRequest
	Recipe string            `json:"recipe"`
	Shard  string            `json:"shard"`
	Parts  []core.PartReport `json:"parts"`
}

func mergeBegin(ctx context.Context, request string) (string, error) {
	return withParts(ctx, request, func(e *engine, spec *core.MergeSpec, _ *partRequest) (string, error) {
		return marshalled(e.BeginMerge(ctx, spec))
	})
}

func mergePart(ctx context.Context, request string) (string, error) {
	return withParts(ctx, request, func(e *engine, spec *core.MergeSpec, in *partRequest) (string, error) {
		return marshalled(e.MergePart(ctx, spec, in.Recipe, in.Shard))
	})
}

func mergeFinish(ctx context.Context, request string) (string, error) {
	return withParts(ctx, request, func(e *engine, spec *core.MergeSpec, in *partRequest) (string, error) {
		return marshalled(e.FinishMerge(ctx, spec, in.Recipe, in.Parts))
	})
}

func withParts(ctx context.Context, request string, do func(e *engine, spec *core.MergeSpec, in *partRequest) (string, error)) (string, error) {
	var in partRequest
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, spec, err := in.spec(ctx)
	if err != nil {
		return "", err
	}
	return do(e, spec, &in)
}

func marshalled[T any](result T, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return marshal(result)
}

// dtypeOf is tensor.Invalid for "".
func dtypeOf(name string) (tensor.Dtype, error) {
	if name == "" {
		return tensor.Invalid, nil
	}
	dtype, err := tensor.ParseDtype(name)
	if err != nil {
		return dtype, core.Invalid("", "%v", err)
	}
	return dtype, nil
}

type sweepRequest struct {
	Engine     int64     `json:"engine"`
	Sources    []string  `json:"sources"`
	Steps      []float64 `json:"steps"`
	ModelKey   string    `json:"model_key"`
	ConfigFrom string    `json:"config_from"`
	Candidates []struct {
		Name    string      `json:"name"`
		Method  string      `json:"method"`
		Params  core.Params `json:"params"`
		Sources []int       `json:"sources"`
		Weights []float64   `json:"weights"`
		Dtype   string      `json:"dtype"`
		Out     string      `json:"out"`
	} `json:"candidates"`
	Float64    bool  `json:"float64"`
	AnyDtypes  bool  `json:"any_dtypes"`
	Overwrite  bool  `json:"overwrite"`
	Resume     bool  `json:"resume"`
	Volatile   bool  `json:"volatile"`
	DryRun     bool  `json:"dry_run"`
	ShardBytes int64 `json:"shard_bytes"`
	Threads    int   `json:"threads"`
}

func sweep(ctx context.Context, request string) (string, error) {
	var in sweepRequest
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, err := engines.find(in.Engine)
	if err != nil {
		return "", err
	}
	spec := &core.SweepSpec{Sources: in.Sources, Steps: in.Steps, ModelKey: in.ModelKey, ConfigFrom: in.ConfigFrom, Float64: in.Float64, AnyDtypes: in.AnyDtypes, Overwrite: in.Overwrite,
		Resume: in.Resume, Volatile: in.Volatile, DryRun: in.DryRun, ShardBytes: in.ShardBytes, Threads: in.Threads,
		Progress: func(done, total int64) { reportProgress(ctx, done, total) }}
	for _, c := range in.Candidates {
		dtype, err := dtypeOf(c.Dtype)
		if err != nil {
			return "", err
		}
		spec.Candidates = append(spec.Candidates, core.Candidate{Name: c.Name, Method: c.Method, Params: c.Params,
			Sources: c.Sources, Weights: c.Weights, Dtype: dtype, Out: c.Out})
	}
	report, err := e.Sweep(ctx, spec)
	if err != nil {
		return "", err
	}
	return marshal(report)
}

// checkpointChunks says where a distributed checkpoint's weights lie.
func checkpointChunks(_ context.Context, request string) (string, error) {
	var in struct {
		Dir      string `json:"dir"`
		ModelKey string `json:"model_key"`
	}
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	chunks, err := checkpoint.Chunks(in.Dir, in.ModelKey)
	if err != nil {
		return "", core.CheckpointError(err)
	}
	return marshal(map[string]any{"chunks": chunks})
}

// checkpointFiles lists the files that hold a checkpoint's weights.
func checkpointFiles(_ context.Context, request string) (string, error) {
	var in struct {
		Dir      string `json:"dir"`
		ModelKey string `json:"model_key"`
	}
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	folder, err := checkpoint.OpenModel(in.Dir, in.ModelKey)
	if err != nil {
		return "", core.CheckpointError(err)
	}
	defer folder.Close()
	paths := make([]string, len(folder.Files))
	for i, f := range folder.Files {
		paths[i] = f.Path
	}
	return marshal(map[string]any{"files": paths})
}

// checkpointNames is how a checkpoint's files are called.
func checkpointNames(context.Context, string) (string, error) { return marshal(checkpoint.FileNames()) }

// series finds the checkpoints of a run and picks some.
func series(_ context.Context, request string) (string, error) {
	var in struct {
		Roots    []string `json:"roots"`
		Pattern  string   `json:"pattern"`
		N        int      `json:"n"`
		Interval int64    `json:"interval"`
		End      int64    `json:"end"`
	}
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	if in.N < 0 || in.Interval < 0 || in.End < 0 {
		return "", core.Invalid("", "n %d, interval %d, end %d: want none below 0", in.N, in.Interval, in.End)
	}
	var pattern *regexp.Regexp
	if in.Pattern != "" {
		var err error
		if pattern, err = regexp.Compile(in.Pattern); err != nil || pattern.NumSubexp() < 1 {
			return "", core.Invalid("", "pattern %q: want a regular expression with a group for the step, such as step-(\\d+)", in.Pattern)
		}
	}
	found, err := checkpoint.FindSeries(in.Roots, pattern)
	if err != nil {
		return "", core.CheckpointError(err)
	}
	picked, err := found.Select(in.N, in.Interval, in.End)
	if err != nil {
		return "", core.CheckpointError(err)
	}
	return marshal(map[string]any{"steps": picked, "ignored": found.Ignored})
}

func similarity(ctx context.Context, request string) (string, error) {
	var in struct {
		Engine   int64    `json:"engine"`
		Sources  []string `json:"sources"`
		ModelKey string   `json:"model_key"`
		Threads  int      `json:"threads"`
	}
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, err := engines.find(in.Engine)
	if err != nil {
		return "", err
	}
	report, err := e.Similarity(ctx, &core.SimilaritySpec{Sources: in.Sources, ModelKey: in.ModelKey, Threads: in.Threads,
		Progress: func(done, total int64) { reportProgress(ctx, done, total) }})
	if err != nil {
		return "", err
	}
	return marshal(report)
}
