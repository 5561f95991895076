package pybind

import (
	"context"
	"encoding/json"

	"github.com/trivium-ml/trivium/core"
)

// attendRequest is what trivium.attention and trivium.select send.
type attendRequest struct {
	Engine   int64  `json:"engine"`
	Strategy string `json:"strategy"`

	Query  *array `json:"query"`
	Key    *array `json:"key"`
	Value  *array `json:"value"`
	Output *array `json:"output"`
	LSE    *array `json:"lse"`

	QueryOffset []int64   `json:"q_offset"`
	KeyStart    []int64   `json:"k_start"`
	KeyEnd      []int64   `json:"k_end"`
	CuSeqlens   []int64   `json:"cu_seqlens"`
	Scale       float64   `json:"scale"`
	Causal      bool      `json:"causal"`
	Window      int64     `json:"window"`
	Softcap     float64   `json:"softcap"`
	Sinks       []float32 `json:"sinks"`

	Precision core.Precision `json:"precision"`

	Plan      int64       `json:"plan"` // of operation "plan"; 0: none
	Mask      *maskArrays `json:"mask"`
	Params    core.Params `json:"params"`
	Layer     int         `json:"layer"`
	Threads   int         `json:"threads"`
	Seed      int64       `json:"seed"`
	WantMask  bool        `json:"want_mask"`
	ProbeRows int         `json:"probe_rows"`
	Bound     string      `json:"bound"`
	Delta     float64     `json:"delta"`
	Report    bool        `json:"report"`

	Ready *fence `json:"ready"` // on a device
	Done  *fence `json:"done"`

	Keep int64 `json:"keep"` // of a call on a device: a number for "again"; 0: none
}

// attendResult is what they get back.
type attendResult struct {
	Report *core.Report `json:"report,omitempty"`
	Mask   *maskHandle  `json:"mask,omitempty"`
}

// attend is an operation that Submit can often start without a goroutine: a call
// that is over in 100 us should not wait for other threads to be woken.
func attend(ctx context.Context, request string) (started, work, error) {
	var in attendRequest
	if err := unmarshal(request, &in); err != nil {
		return nil, nil, err
	}
	if in.Keep != 0 && in.Ready != nil && in.Done != nil && in.Mask == nil {
		kept.add(in.Keep, &in)
	}
	return startAttend(ctx, &in)
}

func startAttend(ctx context.Context, in *attendRequest) (started, work, error) {
	e, strategy, req, err := in.call()
	if err != nil {
		return nil, nil, err
	}
	call, err := e.Prepare(strategy, &req.AttentionRequest)
	if err != nil {
		return nil, nil, err
	}
	running, err := call.Start(ctx)
	if err != nil {
		return nil, nil, err
	}
	if running != nil {
		return &startedAttend{running, req}, nil, nil
	}
	return nil, func(ctx context.Context) (string, error) {
		response, err := call.Attend(ctx)
		if err != nil {
			return "", err
		}
		return req.result(response)
	}, nil
}

// startedAttend is an attention call that runs in the plugin.
type startedAttend struct {
	core.StartedAttention
	req *attendCall
}

func (s *startedAttend) finish() (string, error) {
	response, err := s.Finish()
	if err != nil {
		return "", err
	}
	return s.req.result(response)
}

func (req *attendCall) result(response *core.AttentionResponse) (string, error) {
	if !req.report && response.Mask == nil {
		return "{}", nil
	}
	result := attendResult{Mask: holdMask(response.Mask)}
	if req.report {
		result.Report = &response.Report
	}
	return marshal(result)
}

// defaultBlockSize is that of the mask of everything, when the strategy has none.
const defaultBlockSize = 128

// selectResult is a selection. A choice of everything has the mask of everything.
type selectResult struct {
	Mask   *maskHandle       `json:"mask"`
	Reason string            `json:"reason"`
	Heads  []core.HeadReport `json:"heads"`
}

func selectBlocks(ctx context.Context, request string) (string, error) {
	var in attendRequest
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, strategy, req, err := in.call()
	if err != nil {
		return "", err
	}
	selection, err := e.Select(ctx, strategy, &req.AttentionRequest)
	if err != nil {
		return "", err
	}
	mask := selection.Mask
	if mask == nil {
		size := defaultBlockSize
		if req.Params.IsSet("block_size") {
			size = req.Params.Int("block_size")
		}
		mask = core.DenseMask(size, req.Query.Dim(1), req.BlockExtents(size), req.Causal)
	}
	return marshal(selectResult{holdMask(mask), selection.Reason, selection.Heads})
}

// attendCall is a request with what only this border needs.
type attendCall struct {
	core.AttentionRequest
	report bool
}

func (in *attendRequest) call() (*engine, string, *attendCall, error) {
	e, err := engines.find(in.Engine)
	if err != nil {
		return nil, "", nil, err
	}
	req := &attendCall{report: in.Report, AttentionRequest: core.AttentionRequest{
		QueryOffset: in.QueryOffset, KeyStart: in.KeyStart, KeyEnd: in.KeyEnd, CuSeqlens: in.CuSeqlens,
		Scale: in.Scale, Causal: in.Causal, Window: in.Window, Softcap: in.Softcap, Sinks: in.Sinks,
		Params: in.Params, Layer: in.Layer, Threads: in.Threads, Seed: in.Seed,
		WantMask: in.WantMask, ProbeRows: in.ProbeRows, Bound: in.Bound, Delta: in.Delta, Precision: in.Precision,
		Ready: in.Ready.fence(), Done: in.Done.fence(), OmitReport: !in.Report,
	}}
	if err := tensors(namedArray{"query", in.Query, &req.Query}, namedArray{"key", in.Key, &req.Key},
		namedArray{"value", in.Value, &req.Value}, namedArray{"output", in.Output, &req.Output},
		namedArray{"lse", in.LSE, &req.LSE}); err != nil {
		return nil, "", nil, err
	}
	if in.Plan != 0 {
		if req.Position, err = plans.find(in.Plan); err != nil {
			return nil, "", nil, err
		}
	}
	req.Mask, err = in.Mask.blockMask(&req.AttentionRequest)
	return e, in.Strategy, req, err
}

func unmarshal(request string, into any) error {
	if err := json.Unmarshal([]byte(request), into); err != nil {
		return core.Invalid("", "request: %v", err)
	}
	return nil
}

func marshal(result any) (string, error) {
	text, err := json.Marshal(result)
	return string(text), err
}
