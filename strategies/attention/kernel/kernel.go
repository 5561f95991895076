// Package kernel runs attention strategies on a backend. A strategy made with
// Kernel.Strategy is one function that chooses blocks; cutting batches and
// packed sequences, packing keys once per call, decoding, attending, coverage
// and the report are done here, the same way for all of them.
package kernel

import (
	"context"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// Kernel attends on one backend. It holds no state between calls and is safe
// for use by several goroutines.
type Kernel struct {
	backend   hardware.Backend
	crossover *Crossover  // nil: not measured
	lanes     *cuda.Lanes // nil: the backend only
}

// New makes a kernel on a backend.
func New(backend hardware.Backend) *Kernel { return &Kernel{backend: backend} }

// Selector chooses the blocks of a call, which it borrows until it returns.
type Selector func(ctx context.Context, call *Call) (*core.Selection, error)

// Strategy makes an attention strategy of a selector, and of another for GPUs
// if it has one. The capabilities that are the kernel's are filled in.
func (k *Kernel) Strategy(info core.Info, choose Selector, device ...DeviceSelector) core.AttentionStrategy {
	s := &strategy{kernel: k, info: complete(info), choose: choose}
	if len(device) > 0 {
		s.device = device[0]
		s.info.Capabilities.Devices = append(s.info.Capabilities.Devices, tensor.CUDA)
	}
	return s
}

// strategy is a selector with the shared kernel around it.
type strategy struct {
	kernel *Kernel
	info   core.Info
	choose Selector
	device DeviceSelector // nil: the CPU only
}

var _ core.Attender = (*strategy)(nil)

func (s *strategy) Info() core.Info { return s.info }

func (s *strategy) Select(ctx context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	if onDevice(req) {
		return s.selectOnDevice(ctx, req)
	}
	call, err := s.open(ctx, req)
	if err != nil {
		return nil, err
	}
	defer call.Close()
	return call.choose(ctx, s.choose)
}

func (s *strategy) Attend(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	if onDevice(req) {
		return s.attendOnDevice(ctx, req)
	}
	call, err := s.open(ctx, req)
	if err != nil {
		return nil, err
	}
	defer call.Close()
	start := time.Now()
	selection, err := call.choose(ctx, s.choose)
	if err != nil {
		return nil, err
	}
	selected := time.Since(start)
	response, err := call.attend(ctx, selection)
	if err != nil {
		return nil, err
	}
	response.Report.Times.Select = milliseconds(selected)
	return response, nil
}

func (s *strategy) open(ctx context.Context, req *core.AttentionRequest) (*Call, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	params, err := s.info.Validate(req.Params, req.Query.Dim(1))
	if err != nil {
		return nil, err
	}
	return s.kernel.open(ctx, s.info, req, params)
}

// Attend attends to the blocks that somebody else selected.
func (k *Kernel) Attend(ctx context.Context, req *core.AttentionRequest, selection *core.Selection) (*core.AttentionResponse, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	custom := core.Info{Kind: core.Attention, Name: "custom"}
	if onDevice(req) {
		return k.attendOnDevice(&DeviceCall{ctx: ctx, info: custom, Request: req}, func(*DeviceCall, *Part) (*DeviceSelection, error) {
			return &DeviceSelection{Masked: selection.Mask, Reason: selection.Reason, Pattern: "dense"}, nil
		})
	}
	call, err := k.open(ctx, custom, req, nil)
	if err != nil {
		return nil, err
	}
	defer call.Close()
	return call.attend(ctx, selection)
}

// choose applies the rules that hold for every strategy before asking it.
func (c *Call) choose(ctx context.Context, choose Selector) (*core.Selection, error) {
	switch {
	case c.Request.ForceDense:
		return c.Dense("dense", "dense was asked for"), nil
	case c.decodes() && c.Request.Mask == nil: // a mask of the caller's is obeyed
		return c.Dense("dense_decode", "one query per sequence: decoding is dense"), nil
	}
	if reason := c.tooShort(); reason != "" {
		return c.Dense("dense", reason), nil
	}
	if size := c.Params.Int("segment"); size > 0 {
		return c.chooseBySegment(ctx, size, choose)
	}
	return c.ask(ctx, choose)
}

// ask lets the strategy choose, and tops up if coverage is to be enforced.
func (c *Call) ask(ctx context.Context, choose Selector) (*core.Selection, error) {
	selection, err := choose(ctx, c)
	if err != nil || selection.Mask == nil || !c.enforces() {
		return selection, err
	}
	return c.enforce(ctx, selection)
}

func (c *Call) decodes() bool {
	for _, s := range c.Problem.Sequences {
		if len(s.Query) > 0 && s.Query[0].Rows > 1 {
			return false
		}
	}
	return true
}

func complete(info core.Info) core.Info {
	info.Kind = core.Attention
	info.License, info.Version = "Apache-2.0", "0.1.0"
	c := &info.Capabilities
	c.Dtypes = []string{"float32", "bfloat16", "float16"}
	c.Devices = []string{string(tensor.CPU)}
	c.MaxHeadDim = 256
	c.GQA, c.Varlen, c.Chunked, c.Deterministic, c.Attends = true, true, true, true, true
	return info
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
