package core

import (
	"context"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core/tensor"
)

// Engine runs strategies by name. It is safe for use by several goroutines.
type Engine struct {
	registry *Registry
	log      *logrus.Logger
	plans    planCache
	closed   atomic.Bool
}

// NewEngine makes an engine over a registry, which may still grow. A nil log
// keeps warnings only.
func NewEngine(registry *Registry, log *logrus.Logger) *Engine {
	if log == nil {
		log = Quiet()
	}
	return &Engine{registry: registry, log: log}
}

// Close makes every later call fail with engine_closed. It does not end calls
// that are under way; cancel their contexts for that.
func (e *Engine) Close() { e.closed.Store(true) }

// List describes the strategies of a kind, or all when it is "".
func (e *Engine) List(kind StrategyKind) []Info { return e.registry.List(kind) }

// Log is the engine's logger.
func (e *Engine) Log() *logrus.Logger { return e.log }

func (e *Engine) open() error {
	if e.closed.Load() {
		return Errorf(ErrEngineClosed, "the engine is closed").WithHint("make a new one")
	}
	return nil
}

// Attend runs an attention strategy. It validates req, fills in defaults, and
// writes req.Output and req.LSE.
func (e *Engine) Attend(ctx context.Context, strategy string, req *AttentionRequest) (*AttentionResponse, error) {
	call, err := e.Prepare(strategy, req)
	if err != nil {
		return nil, err
	}
	return call.Attend(ctx)
}

// Prepare does what of Attend needs no strategy to run, once for whichever way
// the call then takes. The request is the call's from here on.
func (e *Engine) Prepare(strategy string, req *AttentionRequest) (*AttentionCall, error) {
	s, err := e.resolve(strategy, req)
	if err != nil {
		return nil, err
	}
	if err := checkOutputs(req); err != nil {
		return nil, err
	}
	return &AttentionCall{engine: e, strategy: s, req: req}, nil
}

// AttentionCall is a valid call that has not begun.
type AttentionCall struct {
	engine   *Engine
	strategy AttentionStrategy
	req      *AttentionRequest
}

// Attend runs the call to its end.
func (c *AttentionCall) Attend(ctx context.Context) (*AttentionResponse, error) {
	if attender, ok := c.strategy.(Attender); ok && c.strategy.Info().Capabilities.Attends {
		return attender.Attend(ctx, c.req)
	}
	return c.engine.selectThenAttend(ctx, c.strategy, c.req)
}

// Start begins the call and leaves the waiting to the caller, who ends it with
// Finish. It gives nil and no error when the strategy cannot do that now: Attend.
func (c *AttentionCall) Start(ctx context.Context) (StartedAttention, error) {
	starter, ok := c.strategy.(Starter)
	if !ok {
		return nil, nil
	}
	return starter.Start(ctx, c.req)
}

// selectThenAttend lets a strategy that only selects choose the blocks and the
// shared kernel, which is the strategy "custom", attend to them.
func (e *Engine) selectThenAttend(ctx context.Context, s AttentionStrategy, req *AttentionRequest) (*AttentionResponse, error) {
	selection := &Selection{Reason: "force_dense"}
	if !req.ForceDense {
		selecting := *req
		selecting.Done = nil // attending reaches it
		var err error
		if selection, err = s.Select(ctx, &selecting); err != nil {
			return nil, err
		}
	}
	kernel, err := e.registry.Lookup(Attention, "custom")
	if err != nil {
		return nil, err
	}
	attender, ok := kernel.(Attender)
	if !ok {
		return nil, Errorf(ErrUnsupported, "%s only selects, and there is no kernel to attend", s.Info().ID()).
			WithHint("install the built-in plugin")
	}
	masked := *req
	masked.Mask = selection.Mask
	masked.ForceDense = selection.Mask == nil
	if masked.Params, err = attender.Info().Validate(nil, req.Query.Dim(1)); err != nil {
		return nil, err
	}
	response, err := attender.Attend(ctx, &masked)
	if err != nil {
		return nil, err
	}
	response.Report.Strategy = s.Info().ID()
	response.Report.describe(selection)
	return response, nil
}

// describe adds what the selector said of each head to the report.
func (r *Report) describe(selection *Selection) {
	if selection.Reason != "" {
		r.Notes = append(r.Notes, "attended to everything: "+selection.Reason)
	}
	if len(selection.Heads) != len(r.Heads) {
		return
	}
	for i, h := range selection.Heads {
		r.Heads[i].Pattern, r.Heads[i].JSDistance = h.Pattern, h.JSDistance
	}
}

// Select lets an attention strategy choose blocks without attending to them.
func (e *Engine) Select(ctx context.Context, strategy string, req *AttentionRequest) (*Selection, error) {
	s, err := e.resolve(strategy, req)
	if err != nil {
		return nil, err
	}
	return s.Select(ctx, req)
}

// resolve finds the strategy and makes the request valid for it, with defaults filled in.
func (e *Engine) resolve(strategy string, req *AttentionRequest) (AttentionStrategy, error) {
	if err := e.open(); err != nil {
		return nil, err
	}
	s, err := e.registry.Lookup(Attention, strategy)
	if err != nil {
		return nil, err
	}
	if err := req.Validate(); err != nil {
		return nil, at(err, s.Info())
	}
	if err := s.Info().supports(req); err != nil {
		return nil, err
	}
	req.Params, err = s.Info().Validate(req.Params, req.Query.Dim(1))
	if err != nil {
		return nil, err
	}
	return s.(AttentionStrategy), nil
}

// at names the strategy in an error that does not.
func at(err error, info Info) error {
	typed := AsError(err)
	if typed.Strategy == "" {
		typed.Strategy = info.ID()
	}
	return typed
}

// supports refuses what the strategy says it cannot do.
func (i Info) supports(req *AttentionRequest) error {
	c := i.Capabilities
	if dtype := req.Query.Dtype().String(); len(c.Dtypes) > 0 && !slices.Contains(c.Dtypes, dtype) {
		return Invalid(i.ID(), "dtype %s: want one of %v", dtype, c.Dtypes)
	}
	if err := i.RunsOn(req.Query.Device()); err != nil {
		return err
	}
	if c.MaxHeadDim > 0 && req.Query.Dim(3) > c.MaxHeadDim {
		return Invalid(i.ID(), "head_dim %d: want at most %d", req.Query.Dim(3), c.MaxHeadDim)
	}
	if req.Query.Dim(1) != req.Key.Dim(1) && !c.GQA {
		return Invalid(i.ID(), "%d query heads on %d kv heads: it wants as many of both", req.Query.Dim(1), req.Key.Dim(1))
	}
	if !c.Varlen && (req.CuSeqlens != nil || req.KeyStart != nil || req.KeyEnd != nil) {
		return Invalid(i.ID(), "it takes neither padding nor packed sequences")
	}
	if !c.Chunked && slices.ContainsFunc(req.QueryOffset, func(o int64) bool { return o > 0 }) {
		return Invalid(i.ID(), "it does not take q_offset > 0")
	}
	return nil
}

// RunsOn refuses a device that the strategy does not have.
func (i Info) RunsOn(device tensor.Device) error {
	devices := i.Capabilities.Devices
	if len(devices) == 0 {
		devices = []string{string(tensor.CPU)}
	}
	if slices.Contains(devices, device.Kind()) {
		return nil
	}
	e := Errorf(ErrDeviceUnavailable, "tensors on %s: it runs on %s", device, strings.Join(devices, ", ")).
		WithHint("move the tensors there, or take a strategy whose capabilities list %q among its devices", device.Kind())
	e.Strategy = i.ID()
	return e
}

func checkOutputs(req *AttentionRequest) error {
	if req.Output == nil {
		return Invalid("", "an output tensor is needed")
	}
	for _, t := range []*tensor.Tensor{req.Output, req.LSE} {
		if t != nil && t.Device() != req.Query.Device() {
			return Invalid("", "output %v for a query on %s: want one device", t, req.Query.Device())
		}
	}
	if req.Output.Dtype() != req.Query.Dtype() || !slices.Equal(req.Output.Shape(), req.Query.Shape()) {
		return Invalid("", "output %v: want %v like the query", req.Output, req.Query)
	}
	if req.LSE != nil && (req.LSE.Dtype() != tensor.Float32 || !slices.Equal(req.LSE.Shape(), req.Query.Shape()[:3])) {
		return Invalid("", "lse %v: want float32%v", req.LSE, req.Query.Shape()[:3])
	}
	return nil
}

// Plan asks a position strategy for its plan. Plans are cached, since a model
// asks for the same one in every layer and step; do not modify them.
func (e *Engine) Plan(ctx context.Context, strategy string, req *PositionRequest) (*PositionPlan, error) {
	if err := e.open(); err != nil {
		return nil, err
	}
	s, err := e.registry.Lookup(Position, strategy)
	if err != nil {
		return nil, err
	}
	if err := req.validate(s.Info()); err != nil {
		return nil, err
	}
	req.Params, err = s.Info().Validate(req.Params, 0)
	if err != nil {
		return nil, err
	}
	return e.plans.get(s.Info().Name, req, func() (*PositionPlan, error) {
		plan, err := s.(PositionStrategy).Plan(ctx, req)
		if err != nil {
			return nil, err
		}
		plan.Strategy = s.Info().ID()
		if err := plan.Validate(req.HeadDim); err != nil {
			return nil, at(err, s.Info())
		}
		return plan, nil
	})
}

func (req *PositionRequest) validate(info Info) error {
	if req.HeadDim < 1 || req.HeadDim > 1<<16 {
		return Invalid(info.ID(), "head_dim %d: want 1 to 65536", req.HeadDim)
	}
	if req.Length < 1 {
		return Invalid(info.ID(), "length %d: want at least 1", req.Length)
	}
	if len(req.InvFreq) == 0 || 2*len(req.InvFreq) > req.HeadDim {
		return Invalid(info.ID(), "%d rotary frequencies for head_dim %d: want 1 to %d", len(req.InvFreq), req.HeadDim, req.HeadDim/2).
			WithHint("pass inv_freq= or rope_theta=")
	}
	for _, f := range req.InvFreq {
		if math.IsNaN(f) || math.IsInf(f, 0) || f < 0 {
			return Invalid(info.ID(), "inv_freq %g: want finite numbers of at least 0", f)
		}
	}
	return nil
}

// planCache keeps the latest plans. A plan is a few hundred bytes.
type planCache struct {
	mu    sync.Mutex
	plans map[string]*PositionPlan
}

const maxPlans = 256

func (c *planCache) get(name string, req *PositionRequest, compute func() (*PositionPlan, error)) (*PositionPlan, error) {
	key := req.key(name)
	c.mu.Lock()
	plan, ok := c.plans[key]
	c.mu.Unlock()
	if ok {
		return plan, nil
	}
	plan, err := compute()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plans == nil || len(c.plans) >= maxPlans {
		c.plans = make(map[string]*PositionPlan)
	}
	c.plans[key] = plan
	return plan, nil
}
