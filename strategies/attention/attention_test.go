// Package attention_test holds every attention strategy to what all of them
// promise.
package attention_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/custom"
	"github.com/trivium-ml/trivium/strategies/attention/dense"
	"github.com/trivium-ml/trivium/strategies/attention/flashprefill"
	"github.com/trivium-ml/trivium/strategies/attention/flexprefill"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/minference"
	bound "github.com/trivium-ml/trivium/strategies/attention/oracle"
	"github.com/trivium-ml/trivium/strategies/attention/probe"
	"github.com/trivium-ml/trivium/strategies/attention/streaming"
	"github.com/trivium-ml/trivium/strategies/attention/verticalslash"
	"github.com/trivium-ml/trivium/strategies/attention/xattention"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
	"github.com/trivium-ml/trivium/strategies/position"
)

// each strategy with parameters that make it sparse at the lengths used here.
var strategies = []struct {
	name   string
	make   func(*kernel.Kernel) core.AttentionStrategy
	params core.Params
}{
	{"dense", dense.New, core.Params{}},
	{"streaming", streaming.New, core.Params{"sink": int64(32), "recent": int64(64), "block_size": int64(32)}},
	{"tri-shape", streaming.New, core.Params{"sink": int64(32), "recent": int64(64), "last": int64(100), "block_size": int64(32)}},
	{"flexprefill", flexprefill.New, core.Params{"gamma": 0.7, "min_budget": int64(64), "block_size": int64(32)}},
	{"flexprefill released", flexprefill.New, core.Params{"gamma": 0.7, "min_budget": int64(64), "block_size": int64(32), "rule": "released"}},
	{"verticalslash", verticalslash.New, core.Params{"vertical": int64(96), "slash": int64(96), "block_size": int64(32)}},
	{"minference", minference.New, core.Params{"patterns": "minference/testdata/patterns.json", "block_size": int64(32)}},
	{"xattention", xattention.New, core.Params{"threshold": 0.5, "block_size": int64(32)}},
	{"flashprefill", flashprefill.New, core.Params{"alpha": 0.5, "sink_blocks": int64(1), "window_blocks": int64(2), "block_size": int64(32)}},
	{"oracle", bound.New, core.Params{"gamma": 0.7, "block_size": int64(32)}},
	{"probe", probe.New, core.Params{"gamma": 0.5, "block_size": int64(32)}},
}

const tokens = 1400

func newRequest(seed uint64, params core.Params) *core.AttentionRequest {
	req := request.Random(seed, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: tokens, Keys: tokens, Dim: 16})
	req.Params, req.WantMask, req.Layer = params, true, 0
	return req
}

func attend(t *testing.T, s core.AttentionStrategy, req *core.AttentionRequest) *core.AttentionResponse {
	t.Helper()
	response, err := s.(core.Attender).Attend(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func choose(t *testing.T, s core.AttentionStrategy, req *core.AttentionRequest) *core.BlockMask {
	t.Helper()
	selection, err := s.Select(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return selection.Mask
}

// variants are what every strategy must honour beside plain causal attention.
func variants(t *testing.T) map[string]func(*core.AttentionRequest) {
	frequencies := make([]float64, 8)
	for i := range frequencies {
		frequencies[i] = math.Pow(1000, -float64(i)/8)
	}
	plan, err := position.String().Plan(context.Background(), &core.PositionRequest{HeadDim: 16, InvFreq: frequencies, Length: tokens,
		Params: core.Params{"shift": int64(300), "local": int64(32)}})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func(*core.AttentionRequest){
		"plain":        func(*core.AttentionRequest) {},
		"window":       func(r *core.AttentionRequest) { r.Window = 500 },
		"softcap":      func(r *core.AttentionRequest) { r.Softcap = 5 },
		"sinks":        func(r *core.AttentionRequest) { r.Sinks = []float32{0, 1, 2, 3} },
		"string":       func(r *core.AttentionRequest) { r.Position = plan },
		"left padding": func(r *core.AttentionRequest) { r.KeyStart = []int64{40} },
		"not causal":   func(r *core.AttentionRequest) { r.Causal = false },
	}
}

// What a strategy attends to is exactly what it says it kept.
func TestOutputIsThatOfTheMask(t *testing.T) {
	for _, c := range strategies {
		for name, change := range variants(t) {
			t.Run(c.name+" "+name, func(t *testing.T) {
				if c.name == "flexprefill released" && name != "plain" {
					t.Skip("as flexprefill")
				}
				req := newRequest(1, c.params)
				change(req)
				response := attend(t, c.make(kernel.New(backends.Best(t))), req)
				want := *req
				want.Params = nil
				request.Outputs(&want)
				if _, err := kernel.New(oracle.New()).Attend(context.Background(), &want, &core.Selection{Mask: response.Mask}); err != nil {
					t.Fatal(err)
				}
				if d := request.Difference(req.Output, want.Output); !(d <= 2e-5) {
					t.Errorf("output differs from the oracle on the same blocks by %g", d)
				}
				if d := request.LSEDifference(req.LSE, want.LSE); !(d <= 2e-5) {
					t.Errorf("lse differs by %g", d)
				}
				if response.Mask != nil && response.Report.Density >= 1 {
					t.Errorf("a mask of density %g", response.Report.Density)
				}
				if response.Mask == nil && c.name != "dense" && name == "plain" {
					t.Errorf("dense: %v", response.Report.Notes)
				}
			})
		}
	}
}

func TestBackendsChooseTheSameBlocks(t *testing.T) {
	for _, c := range strategies {
		want := choose(t, c.make(kernel.New(oracle.New())), newRequest(2, c.params))
		backends.Each(t, func(t *testing.T, backend hardware.Backend) {
			got := choose(t, c.make(kernel.New(backend)), newRequest(2, c.params))
			if (got == nil) != (want == nil) || got != nil && !got.Equal(want) {
				t.Errorf("%s chooses other blocks than on the oracle", c.name)
			}
		})
	}
}

func TestThreadsChangeNothing(t *testing.T) {
	for _, c := range strategies {
		one, many := newRequest(3, c.params), newRequest(3, c.params)
		one.Threads, many.Threads = 1, 7
		s := c.make(kernel.New(backends.Best(t)))
		a, b := attend(t, s, one), attend(t, s, many)
		if a.Mask != nil && !a.Mask.Equal(b.Mask) {
			t.Errorf("%s: other blocks with seven threads", c.name)
		}
		if !slices.Equal(one.Output.Bytes(), many.Output.Bytes()) {
			t.Errorf("%s: other bytes with seven threads", c.name)
		}
	}
}

// A sequence keeps the same blocks alone, in a batch, padded and packed.
func TestSequencesAreIndependent(t *testing.T) {
	for _, c := range strategies {
		t.Run(c.name, func(t *testing.T) {
			s := c.make(kernel.New(backends.Best(t)))
			whole := newRequest(4, c.params)
			packed := *whole
			packed.QueryOffset, packed.CuSeqlens = nil, []int64{0, 40, tokens}
			together := choose(t, s, &packed)
			padded := *whole
			padded.KeyStart = []int64{40}
			behind := choose(t, s, &padded)
			alone := *whole
			alone.QueryOffset = nil
			alone.Query, _ = whole.Query.Narrow(2, 40, tokens-40)
			alone.Key, _ = whole.Key.Narrow(2, 40, tokens-40)
			alone.Value, _ = whole.Value.Narrow(2, 40, tokens-40)
			want := choose(t, s, &alone)
			if want == nil {
				if behind != nil {
					t.Error("dense alone, sparse behind padding")
				}
				return
			}
			if !sameRows(want, 0, behind, 0) {
				t.Error("padding changes its blocks")
			}
			if !sameRows(want, 0, together, 1) {
				t.Error("packing changes its blocks")
			}
		})
	}
}

func sameRows(a *core.BlockMask, sequenceA int, b *core.BlockMask, sequenceB int) bool {
	for h := range a.Heads {
		for i := range a.Sequences[sequenceA].QueryBlocks {
			if !slices.Equal(a.Row(sequenceA, h, i), b.Row(sequenceB, h, i)) {
				return false
			}
		}
	}
	return true
}

// ChunkRule says how the blocks of a chunk relate to those of a one-shot call.
func TestChunkRule(t *testing.T) {
	for _, c := range strategies {
		s := c.make(kernel.New(backends.Best(t)))
		rule := s.Info().Capabilities.ChunkRule
		if rule == "" {
			continue
		}
		for _, ends := range [][]int{{512, tokens}, {96, 128, 640, tokens}, {1344, tokens}} {
			t.Run(fmt.Sprint(c.name, ends), func(t *testing.T) {
				whole := newRequest(5, c.params)
				want := choose(t, s, whole)
				checkChunks(t, s, whole, ends, rule, want)
			})
		}
	}
}

// With a segment every strategy is independent of how a prompt is cut at its
// multiples.
func TestSegmentsMakeChunksTheSame(t *testing.T) {
	for _, c := range strategies {
		s := c.make(kernel.New(backends.Best(t)))
		if _, ok := s.Info().Parameter("segment"); !ok {
			continue
		}
		params := core.Params{"segment": int64(128)}
		for name, value := range c.params {
			params[name] = value
		}
		for _, ends := range [][]int{{512, tokens}, {128, 256, 1024, tokens}, {1280, tokens}} {
			t.Run(fmt.Sprint(c.name, ends), func(t *testing.T) {
				want := choose(t, s, newRequest(5, params))
				if want == nil || len(want.Columns) == len(core.DenseMask(32, 4, want.Sequences, true).Columns) {
					t.Fatal("the one-shot call is dense: the case shows nothing")
				}
				checkChunks(t, s, newRequest(5, params), ends, "same", want)
			})
		}
	}
}

func checkChunks(t *testing.T, s core.AttentionStrategy, whole *core.AttentionRequest, ends []int, rule string, want *core.BlockMask) {
	t.Helper()
	first := 0
	for _, last := range ends {
		chunk := *whole
		chunk.QueryOffset = []int64{int64(first)}
		chunk.Query, _ = whole.Query.Narrow(2, first, last-first)
		chunk.Key, _ = whole.Key.Narrow(2, 0, last)
		chunk.Value, _ = whole.Value.Narrow(2, 0, last)
		got := choose(t, s, &chunk)
		if got == nil && want != nil {
			got = core.DenseMask(want.BlockSize, want.Heads, chunk.BlockExtents(want.BlockSize), true)
		}
		checkChunk(t, rule, want, got)
		first = last
	}
}

func checkChunk(t *testing.T, rule string, whole, chunk *core.BlockMask) {
	t.Helper()
	if whole == nil { // dense has everything
		return
	}
	for h := range chunk.Heads {
		for i := range chunk.Sequences[0].QueryBlocks {
			at := chunk.Sequences[0].FirstQueryBlock + i
			got, want := chunk.Row(0, h, i), whole.Row(0, h, at)
			for _, column := range want {
				if !slices.Contains(got, column) {
					t.Fatalf("head %d, query block %d: key block %d of the one-shot call is missing", h, at, column)
				}
			}
			if rule == "same" && len(got) != len(want) {
				t.Fatalf("head %d, query block %d: %v in a chunk, %v at once", h, at, got, want)
			}
		}
	}
}

func TestEnforcedCoverage(t *testing.T) {
	for _, c := range strategies {
		s := c.make(kernel.New(backends.Best(t)))
		if _, ok := s.Info().Parameter("coverage"); !ok {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			params := core.Params{"coverage": "enforce"}
			for name, value := range c.params {
				params[name] = value
			}
			params["gamma"] = 0.8
			req := newRequest(6, params)
			req.ProbeRows = 1000
			checkKept := func(what string) {
				for _, h := range attend(t, s, req).Report.Heads {
					if !(*h.Coverage >= 0.8) {
						t.Errorf("head %d keeps %g of the mass%s, .8 was promised", h.Head, *h.Coverage, what)
					}
				}
			}
			checkKept("")
			if _, ok := s.Info().Parameter("segment"); ok {
				params["segment"] = int64(512)
				checkKept(" by segments")
				delete(params, "segment")
			}
			req.ProbeRows = 0 // then the promise itself is reported
			response := attend(t, s, req)
			for _, h := range response.Report.Heads {
				if response.Mask != nil && !(*h.CoverageLower >= 0.8 && *h.Coverage >= *h.CoverageLower) {
					t.Errorf("head %d: coverage %g, bound %g, .8 was promised", h.Head, *h.Coverage, *h.CoverageLower)
				}
			}
		})
	}
}

// A caller's mask is topped up like any other choice.
func TestEnforcedCoverageOfAMask(t *testing.T) {
	req := newRequest(6, core.Params{"coverage": "enforce", "gamma": 0.8})
	req.ProbeRows = 1000
	mask := core.NewBlockMask(32, 1, req.BlockExtents(32))
	for i := range mask.Sequences[0].QueryBlocks {
		mask.Append([]int32{int32(i)}) // the diagonal
	}
	req.Mask = mask
	s := custom.New(kernel.New(backends.Best(t)))
	response := attend(t, s, req)
	for _, h := range response.Report.Heads {
		if !(*h.Coverage >= 0.8) || h.BlocksAdded == 0 || h.Density >= 1 {
			t.Errorf("head %d keeps %g of the mass at density %g with %d blocks added, .8 was promised", h.Head, *h.Coverage, h.Density, h.BlocksAdded)
		}
		for i := range mask.Sequences[0].QueryBlocks {
			if !slices.Contains(response.Mask.Row(0, h.Head, i), int32(i)) {
				t.Fatalf("head %d, query block %d: the caller's block is missing", h.Head, i)
			}
		}
	}
	req.Mask = core.NewBlockMask(32, 1, []core.BlockExtent{{QueryBlocks: 1, KeyBlocks: 1}})
	req.Mask.Append([]int32{0})
	if _, err := s.Select(context.Background(), req); core.AsError(err) == nil || core.AsError(err).Kind != core.ErrInvalidArgument {
		t.Errorf("a mask of another shape: %v, want invalid_argument", err)
	}
}

// A proven bound is below the coverage over all rows, for every strategy: delta
// is small enough for these draws never to trip it.
func TestProvenCoverage(t *testing.T) {
	for _, c := range strategies {
		t.Run(c.name, func(t *testing.T) {
			s := c.make(kernel.New(backends.Best(t)))
			req := newRequest(6, c.params)
			req.Bound, req.Delta, req.ProbeRows = core.BoundProven, 1e-9, req.Query.Dim(2)
			truth := attend(t, s, req).Report.Heads // all rows
			for _, h := range truth {
				if h.Density < 1 && !(math.Abs(*h.CoverageLower-*h.Coverage) < 1e-9 && *h.CoverageLowerAll == *h.CoverageLower) {
					t.Errorf("head %d: coverage of all rows %g, bounds %g and %g", h.Head, *h.Coverage, *h.CoverageLower, *h.CoverageLowerAll)
				}
			}
			for req.Seed = range 3 {
				req.ProbeRows = 300
				for i, h := range attend(t, s, req).Report.Heads {
					if h.Bound != core.BoundProven || h.Delta != 1e-9 || !(*h.CoverageLowerAll <= *h.CoverageLower && *h.CoverageLower <= *truth[i].Coverage+1e-6) {
						t.Errorf("seed %d, head %d: bounds %g and %g (%s, delta %g), coverage over all rows %g",
							req.Seed, h.Head, *h.CoverageLower, *h.CoverageLowerAll, h.Bound, h.Delta, *truth[i].Coverage)
					}
					if h.Density < 1 && !(*h.CoverageLower > *h.Coverage-0.3) {
						t.Errorf("seed %d, head %d: bound %g of %g proves nothing", req.Seed, h.Head, *h.CoverageLower, *h.Coverage)
					}
				}
			}
		})
	}
}

// Reports are JSON on their way to the caller, which has no NaN.
func TestNaNStaysOutOfReports(t *testing.T) {
	for _, c := range strategies {
		req := newRequest(7, c.params)
		request.Fill(req.Query, func([4]int) float64 { return math.NaN() })
		for _, rows := range []int{0, 64} {
			if req.ProbeRows = rows; rows > 0 {
				req.Bound = core.BoundProven
			}
			response := attend(t, c.make(kernel.New(backends.Best(t))), req)
			if _, err := json.Marshal(response.Report); err != nil {
				t.Errorf("%s, %d probe rows: %v", c.name, rows, err)
			}
		}
	}
}

func TestInfoIsComplete(t *testing.T) {
	for _, c := range strategies {
		info := c.make(kernel.New(oracle.New())).Info()
		if info.Name == "" || info.Kind != core.Attention || info.Summary == "" || info.License == "" || info.Version == "" {
			t.Errorf("%s: incomplete: %+v", c.name, info)
		}
		if _, err := info.Validate(nil, 4); err != nil {
			t.Errorf("%s: its defaults are not valid: %v", c.name, err)
		}
		for _, p := range info.Parameters {
			if p.Doc == "" {
				t.Errorf("%s: parameter %s has no doc", c.name, p.Name)
			}
			if p.Default == nil {
				continue
			}
			if _, err := info.Validate(core.Params{p.Name: p.Default}, 4); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}
