package core

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core/tensor"
)

// diagonal keeps the diagonal tiles; kernel is a stand-in for the shared one
// that notes which mask it was given.
type diagonal struct{}

func (diagonal) Info() Info {
	return Info{Name: "diagonal", Kind: Attention, Capabilities: Capabilities{Dtypes: []string{"float32"}, GQA: true, Chunked: true}}
}

func (diagonal) Select(_ context.Context, req *AttentionRequest) (*Selection, error) {
	grid := req.BlockExtents(16)
	mask := NewBlockMask(16, req.Query.Dim(1), grid)
	for range req.Query.Dim(1) {
		for i := range grid[0].QueryBlocks {
			mask.Append([]int32{int32(grid[0].FirstQueryBlock + i)})
		}
	}
	return &Selection{Mask: mask, Heads: []HeadReport{{Pattern: "diagonal"}}}, nil
}

type kernel struct{ mask *BlockMask }

func (*kernel) Info() Info {
	return Info{Name: "custom", Kind: Attention, Capabilities: Capabilities{GQA: true, Chunked: true, Varlen: true, Attends: true}}
}

func (k *kernel) Select(_ context.Context, req *AttentionRequest) (*Selection, error) {
	return &Selection{Mask: req.Mask}, nil
}

func (k *kernel) Attend(_ context.Context, req *AttentionRequest) (*AttentionResponse, error) {
	k.mask = req.Mask
	return &AttentionResponse{Report: Report{Strategy: "attention.custom", Heads: make([]HeadReport, 1)}}, nil
}

type stretched struct{ calls int }

func (*stretched) Info() Info { return Info{Name: "stretched", Kind: Position} }

func (s *stretched) Plan(_ context.Context, req *PositionRequest) (*PositionPlan, error) {
	s.calls++
	return &PositionPlan{InvFreq: req.InvFreq, AppliedInvFreq: req.InvFreq, AttentionScale: 1,
		Bands: []Band{{Chunk: 1, Low: math.MinInt64, High: math.MaxInt64, Query: Identity(), Key: Identity()}}}, nil
}

func newEngine(t *testing.T, strategies ...Strategy) *Engine {
	t.Helper()
	r := NewRegistry()
	for _, s := range strategies {
		if err := r.Register(s); err != nil {
			t.Fatal(err)
		}
	}
	return NewEngine(r, nil)
}

// A strategy that only selects is completed by the kernel, and the report says
// whose blocks they were.
func TestSelectOnlyStrategyIsCompletedByTheKernel(t *testing.T) {
	k := &kernel{}
	e := newEngine(t, diagonal{}, k)
	req := request(t, 1, 1, 1, 64, 64, 8)
	req.Output = req.Query
	response, err := e.Attend(context.Background(), "diagonal", req)
	if err != nil {
		t.Fatal(err)
	}
	if k.mask == nil || len(k.mask.Columns) != 4 {
		t.Fatalf("the kernel got %v, want 4 tiles", k.mask)
	}
	if r := response.Report; r.Strategy != "attention.diagonal" || r.Heads[0].Pattern != "diagonal" {
		t.Errorf("report of %s with pattern %q", r.Strategy, r.Heads[0].Pattern)
	}
}

func TestEngineRefuses(t *testing.T) {
	e := newEngine(t, diagonal{}, &kernel{})
	half, err := tensor.Make(tensor.Float16, 1, 1, 64, 8)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name     string
		strategy string
		change   func(*AttentionRequest)
		kind     ErrorKind
		says     string
	}{
		{"unknown strategy", "diagnal", func(*AttentionRequest) {}, ErrUnknownStrategy, `did you mean "diagonal"?`},
		{"no key", "diagonal", func(r *AttentionRequest) { r.Key = nil }, ErrInvalidArgument, "needed"},
		{"dtypes differ", "diagonal", func(r *AttentionRequest) { r.Query = half }, ErrInvalidArgument, "dtypes float16, float32"},
		{"dtype unsupported", "diagonal", func(r *AttentionRequest) { r.Query, r.Key, r.Value = half, half, half }, ErrInvalidArgument, "want one of [float32]"},
		{"padding unsupported", "diagonal", func(r *AttentionRequest) { r.KeyStart = []int64{3} }, ErrInvalidArgument, "neither padding"},
		{"no output", "custom", func(r *AttentionRequest) { r.Output = nil }, ErrInvalidArgument, "output"},
		{"NaN scale", "custom", func(r *AttentionRequest) { r.Scale = math.NaN() }, ErrInvalidArgument, "scale NaN"},
		{"offset count", "custom", func(r *AttentionRequest) { r.QueryOffset = []int64{0, 0} }, ErrInvalidArgument, "q_offset"},
		{"packing with offsets", "custom", func(r *AttentionRequest) { r.CuSeqlens, r.QueryOffset = []int64{0, 64}, []int64{0} }, ErrInvalidArgument, "excludes"},
		{"packing that ends early", "custom", func(r *AttentionRequest) { r.CuSeqlens = []int64{0, 60} }, ErrInvalidArgument, "want 0, ..., 64"},
		{"start after end", "custom", func(r *AttentionRequest) { r.KeyStart, r.KeyEnd = []int64{9}, []int64{8} }, ErrInvalidArgument, "after k_end"},
		{"sinks", "custom", func(r *AttentionRequest) { r.Sinks = []float32{0, 0} }, ErrInvalidArgument, "one for each of 1 query heads"},
		{"unknown parameter", "custom", func(r *AttentionRequest) { r.Params = Params{"gamma": 1.0} }, ErrInvalidArgument, "takes no parameters"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := request(t, 1, 1, 1, 64, 64, 8)
			req.Output = req.Query
			c.change(req)
			_, err := e.Attend(context.Background(), c.strategy, req)
			if !errors.Is(err, &Error{Kind: c.kind}) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %s that says %q", err, c.kind, c.says)
			}
		})
	}
}

func TestClosedEngineRefuses(t *testing.T) {
	e := newEngine(t, diagonal{})
	e.Close()
	if _, err := e.Select(context.Background(), "diagonal", request(t, 1, 1, 1, 8, 8, 8)); !errors.Is(err, &Error{Kind: ErrEngineClosed}) {
		t.Fatalf("got %v, want engine_closed", err)
	}
}

func TestRegistryRefusesANameTwice(t *testing.T) {
	r := NewRegistry()
	if err := r.Register(diagonal{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Register(diagonal{}); !errors.Is(err, &Error{Kind: ErrInvalidArgument}) {
		t.Fatalf("got %v, want invalid_argument", err)
	}
}

// A model asks for one plan in every layer; the strategy is asked once.
func TestPlansAreCached(t *testing.T) {
	s := &stretched{}
	e := newEngine(t, s)
	ask := func(length int64) {
		t.Helper()
		if _, err := e.Plan(context.Background(), "stretched", &PositionRequest{HeadDim: 4, InvFreq: []float64{1, 0.1}, Length: length}); err != nil {
			t.Fatal(err)
		}
	}
	ask(8)
	ask(8)
	if s.calls != 1 {
		t.Errorf("asked %d times, want 1", s.calls)
	}
	ask(9)
	if s.calls != 2 {
		t.Errorf("asked %d times for two lengths, want 2", s.calls)
	}
}

func TestPlanValidateRefuses(t *testing.T) {
	id := Identity()
	cases := map[string][]Band{
		"gap":        {{1, math.MinInt64, 4, id, id}, {1, 5, math.MaxInt64, id, id}},
		"overlap":    {{1, math.MinInt64, 5, id, id}, {1, 4, math.MaxInt64, id, id}},
		"open end":   {{1, math.MinInt64, 5, id, id}},
		"no bands":   {},
		"two chunks": {{1, math.MinInt64, 5, id, id}, {2, 5, math.MaxInt64, id, id}},
	}
	for name, bands := range cases {
		t.Run(name, func(t *testing.T) {
			p := PositionPlan{InvFreq: []float64{1}, AppliedInvFreq: []float64{1}, AttentionScale: 1, Bands: bands}
			if err := p.Validate(2); !errors.Is(err, &Error{Kind: ErrInvalidArgument}) {
				t.Fatalf("got %v, want invalid_argument", err)
			}
		})
	}
}

func TestDevicesOfAStrategy(t *testing.T) {
	for _, c := range []struct {
		devices []string
		device  tensor.Device
		fails   bool
	}{
		{nil, "cpu", false}, {nil, "cuda:0", true}, {[]string{"cpu"}, "cuda:1", true},
		{[]string{"cpu", "cuda"}, "cuda:1", false}, {[]string{"cuda"}, "cpu", true},
	} {
		info := Info{Kind: Attention, Name: "x", Capabilities: Capabilities{Devices: c.devices}}
		err := info.RunsOn(c.device)
		if (err != nil) != c.fails {
			t.Errorf("%v on %s: %v", c.devices, c.device, err)
		}
		if err != nil && (AsError(err).Kind != ErrDeviceUnavailable || AsError(err).Strategy != "attention.x") {
			t.Errorf("%v on %s: %v", c.devices, c.device, err)
		}
	}
}
