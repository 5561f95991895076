package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// DeviceSelector chooses the blocks of a part of a call on a GPU. It starts
// work and does not wait for it.
type DeviceSelector func(call *DeviceCall, part *Part) (*DeviceSelection, error)

// DeviceSelection is what was chosen for a part, in memory of the GPU that is
// good until the next part.
type DeviceSelection struct {
	Mask    *cuda.Mask // nil: everything, with Reason
	Reason  string
	Pattern string // of every head, unless Describe says more
	// Describe completes the reports of the part's heads, by sequence and query
	// head. It may wait for the device. nil: there is no more to say.
	Describe func(heads []core.HeadReport) error
	// Masked are tiles that the host knows, for strategies that choose there.
	Masked *core.BlockMask
	// OfPart: Masked is over the sequences of the part; otherwise of the call.
	OfPart bool
	// Heads are reports that come with Masked; nil: they are made of its tiles.
	Heads []core.HeadReport
	// Judges are the query rows of each head of the part that the choice was made
	// by: unless others are asked for, coverage is measured on them. nil: none.
	Judges [][]int32

	enforced bool // what coverage is to be enforced has been added
}

// DeviceCall is an attention call on a GPU: what Call is on the CPU.
type DeviceCall struct {
	Request *core.AttentionRequest // valid, its parameters complete
	Params  core.Params
	Heads   int // query heads
	Work    *cuda.Work
	Half    bool // fp16 rather than bf16

	ctx    context.Context // of the call, which this struct does not outlive
	kernel *Kernel
	onHost Selector // the strategy's for the CPU; nil: it has none
	info   core.Info
	lane   *cuda.Lane
	parts  []Part
	sinks  cuda.Address
	notes  []string
	waits  bool // for a report
	report core.Report
	kept   []partMask
}

// Part is sequences that are attended to in one launch: a whole batch, or one
// sequence where they differ.
type Part struct {
	First, Count              int // sequences
	Query, Key, Value, Output cuda.Tensor
	LSE                       cuda.Address
	LSEBatch, LSEHead         int64           // strides in elements
	Offset                    int             // position of query row 0
	Sequences                 []cuda.Sequence // nil: each batch entry is one, at Offset
	// As they arrived, before the position plan turned them.
	ArrivedQuery, ArrivedKey cuda.Tensor

	positions rotations
}

// OnCUDA lets the kernel use the machine's NVIDIA GPUs too.
func (k *Kernel) OnCUDA(lanes *cuda.Lanes) *Kernel {
	k.lanes = lanes
	return k
}

// attendOnDevice runs a request whose tensors lie on a GPU.
func (s *strategy) attendOnDevice(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	params, err := s.accept(req)
	if err != nil {
		return nil, err
	}
	return s.kernel.attendOnDevice(&DeviceCall{ctx: ctx, info: s.info, Request: req, Params: params, onHost: s.choose}, s.device)
}

// attendOnDevice completes a call and runs it.
func (k *Kernel) attendOnDevice(c *DeviceCall, choose DeviceSelector) (*core.AttentionResponse, error) {
	response, req := &core.AttentionResponse{}, c.Request
	err := k.onDevice(c, func() error {
		for i := range c.parts {
			if err := c.attend(&c.parts[i], choose); err != nil {
				return err
			}
		}
		if err := c.clearPadding(); err != nil {
			return err
		}
		if err := c.measure(); err != nil {
			return err
		}
		c.noteEverything()
		response.Report = c.finish()
		if req.WantMask {
			response.Mask = c.joined()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// selectOnDevice chooses without attending, and waits.
func (s *strategy) selectOnDevice(ctx context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	params, err := s.accept(req)
	if err != nil {
		return nil, err
	}
	wanted := *req
	wanted.WantMask, wanted.OmitReport = true, false
	selection, c := &core.Selection{}, &DeviceCall{ctx: ctx, info: s.info, Request: &wanted, Params: params, onHost: s.choose}
	err = s.kernel.onDevice(c, func() error {
		for i := range c.parts {
			if _, err := c.choose(&c.parts[i], s.device); err != nil {
				return err
			}
		}
		c.noteEverything()
		selection.Mask, selection.Heads, selection.Reason = c.joined(), c.report.Heads, strings.Join(c.notes, "; ")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return selection, nil
}

// accept checks a request and completes its parameters.
func (s *strategy) accept(req *core.AttentionRequest) (core.Params, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if err := s.info.RunsOn(req.Query.Device()); err != nil {
		return nil, err
	}
	return s.info.Validate(req.Params, req.Query.Dim(1))
}

// onDevice prepares a call and lets start put its work on the GPU.
func (k *Kernel) onDevice(c *DeviceCall, start func() error) error {
	req := c.Request
	lane, err := k.lane(req.Query.Device())
	if err != nil {
		return deviceError(c.info, err)
	}
	c.kernel, c.lane, c.Heads, c.waits = k, lane, req.Query.Dim(1), !req.OmitReport
	if err := c.refuse(); err != nil {
		return err
	}
	return deviceError(c.info, lane.Do(fence(req.Ready), fence(req.Done), func(work *cuda.Work) error {
		c.Work = work
		if err := c.prepare(); err != nil {
			return err
		}
		return start()
	}))
}

func (k *Kernel) lane(device tensor.Device) (*cuda.Lane, error) {
	if k.lanes == nil {
		return nil, core.Errorf(core.ErrDeviceUnavailable, "tensors on %s: this plugin has no kernels for it", device)
	}
	ordinal, err := device.Ordinal()
	if err != nil {
		return nil, core.Invalid("", "%v", err)
	}
	return k.lanes.Lane(ordinal)
}

// refuse says what the kernels of the GPU cannot do, before anything starts.
func (c *DeviceCall) refuse() error {
	r := c.Request
	switch r.Query.Dtype() {
	case tensor.BFloat16:
	case tensor.Float16:
		c.Half = true
	default:
		return core.Invalid(c.info.ID(), "dtype %v on %s: want bfloat16 or float16", r.Query.Dtype(), r.Query.Device()).
			WithHint("q.bfloat16() converts")
	}
	for _, p := range []struct {
		name string
		used bool
	}{
		{"gqa_interleave", c.Params.Bool("gqa_interleave") && r.Key.Dim(1) < c.Heads},
		{MeanCorrection, c.Params.Bool(MeanCorrection)},
		{"a position plan in which pairs count twice", r.Position != nil && r.Position.Twice > 0 && r.Query.Dim(2) > 1},
	} {
		if p.used {
			return c.Unsupported("%s", p.name)
		}
	}
	return nil
}

// Unsupported is the error of something that the strategy does on the CPU only.
func (c *DeviceCall) Unsupported(format string, args ...any) error {
	e := core.Errorf(core.ErrUnsupported, "%s: on %s it is not available", fmt.Sprintf(format, args...), c.Request.Query.Device().Kind()).
		WithHint("leave it out, or move the tensors to the cpu")
	e.Strategy = c.info.ID()
	return e
}

// Note adds a line to the report, once.
func (c *DeviceCall) Note(text string) {
	for _, n := range c.notes {
		if n == text {
			return
		}
	}
	c.notes = append(c.notes, text)
}

// attend chooses for one part and attends to what was chosen.
func (c *DeviceCall) attend(p *Part, choose DeviceSelector) error {
	chosen, err := c.choose(p, choose)
	if err != nil {
		return err
	}
	start := time.Now()
	if chosen.Masked != nil {
		err = c.attendMasked(p, chosen)
	} else {
		err = c.launch(p, chosen.Mask)
	}
	if err != nil || !c.waits {
		return err
	}
	if err := c.Work.Wait(); err != nil {
		return err
	}
	c.report.Times.Attend += milliseconds(time.Since(start))
	return nil
}

// choose applies the rules that hold for every strategy before asking it.
func (c *DeviceCall) choose(p *Part, choose DeviceSelector) (*DeviceSelection, error) {
	if c.waits {
		if err := c.Work.Wait(); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	chosen := &DeviceSelection{Pattern: "dense"}
	switch {
	case c.Request.ForceDense:
	case p.Query.Rows == 1 && c.Request.Mask == nil:
		chosen.Pattern = "dense_decode"
	default:
		var err error
		if chosen, err = c.ask(p, choose); err != nil {
			return nil, err
		}
	}
	if chosen.Reason != "" {
		c.Note("dense: " + chosen.Reason)
	}
	if c.waits {
		if err := c.Work.Wait(); err != nil {
			return nil, err
		}
		c.report.Times.Select += milliseconds(time.Since(start))
	}
	return chosen, c.describe(p, chosen)
}

// ask lets the strategy choose, and tops up if coverage is to be enforced.
func (c *DeviceCall) ask(p *Part, choose DeviceSelector) (*DeviceSelection, error) {
	if c.Params.Int("segment") > 0 {
		choose = OnHost
	}
	chosen, err := choose(c, p)
	if err != nil || chosen.enforced || c.Params.Text("coverage") != "enforce" {
		return chosen, err
	}
	return c.enforce(p, chosen)
}

// launch attends to the tiles of a mask, or to all.
func (c *DeviceCall) launch(p *Part, mask *cuda.Mask) error {
	a := c.attention(p)
	a.Mask = mask
	return c.Work.Attend(a)
}

// attention is dense attention to a part.
func (c *DeviceCall) attention(p *Part) cuda.Attention {
	r := c.Request
	return cuda.Attention{Query: p.Query, Key: p.Key, Value: p.Value, Out: p.Output,
		LSE: p.LSE, LSEBatch: p.LSEBatch, LSEHead: p.LSEHead, Half: c.Half, Scale: c.Scale(p), Full: !r.Causal,
		Offset: p.Offset, Sequences: p.Sequences, Rotated: p.positions.far, Turn: p.positions.turn, Band: p.positions.border,
		Window: int(r.Window), Softcap: float32(r.Softcap), Sinks: c.sinks}
}

func (c *DeviceCall) finish() core.Report {
	r := &c.report
	r.Strategy, r.Notes, r.Threads = c.info.ID(), c.notes, 1
	r.Backend = fmt.Sprintf("%s:sm%d", c.Request.Query.Device(), c.lane.Device.Capability)
	if c.Request.Position != nil {
		r.Position = c.Request.Position.Strategy
	}
	kept, all := int64(0), int64(0)
	for _, h := range r.Heads {
		kept, all = kept+h.Kept, all+h.Blocks
	}
	r.Density = ratio(kept, all)
	return *r
}

// DeviceError types an error of a GPU; nil stays nil.
func DeviceError(err error) error { return deviceError(core.Info{}, err) }

// deviceError also says which strategy it is of.
func deviceError(info core.Info, err error) error {
	if err == nil {
		return nil
	}
	typed := typeDeviceError(err)
	if typed.Strategy == "" && info.Name != "" {
		typed.Strategy = info.ID()
	}
	return typed
}

func typeDeviceError(err error) *core.Error {
	var typed *core.Error
	var missing *cuda.NotAvailableError
	var failed *cuda.DriverError
	var source *cuda.CompileError
	switch {
	case errors.As(err, &failed) && failed.Sticky():
		return core.Errorf(core.ErrPluginCrashed, "the GPU stopped: %w; what this call and those just before it wrote is void", failed).
			WithHint("the plugin process is replaced: the next call starts a new one")
	case errors.As(err, &typed):
		return typed
	case errors.As(err, &missing):
		e := core.Errorf(core.ErrDeviceUnavailable, "%w", missing).WithHint("trivium doctor shows what was found")
		if missing.Missing == "libnvrtc" {
			return e.WithHint("pip install nvidia-cuda-nvrtc, or name the library in TRIVIUM_NVRTC")
		}
		return e
	case errors.As(err, &failed) && failed.OutOfMemory():
		return core.Errorf(core.ErrOutOfMemory, "the GPU's memory: %w", failed).WithHint("torch.cuda.empty_cache() may free some")
	case errors.As(err, &failed), errors.As(err, &source):
		return core.Errorf(core.ErrInternal, "%w", err)
	}
	return core.Errorf(core.ErrUnsupported, "%s", strings.TrimPrefix(err.Error(), "cuda: "))
}

func fence(f *tensor.Fence) *cuda.Fence {
	if f == nil {
		return nil
	}
	return &cuda.Fence{At: cuda.Address(f.Address), Value: f.Value}
}

// onDevice says whether a request is for a GPU.
func onDevice(req *core.AttentionRequest) bool {
	return req.Query != nil && req.Query.Device() != tensor.CPU
}
