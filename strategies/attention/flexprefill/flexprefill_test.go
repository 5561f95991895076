package flexprefill_test

import (
	"context"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/flexprefill"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

var shape = request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 600, Keys: 600, Dim: 32}

func params(more core.Params) core.Params {
	p := core.Params{"block_size": int64(32), "min_budget": int64(64), "gamma": 0.7}
	for name, value := range more {
		p[name] = value
	}
	return p
}

func selection(t *testing.T, req *core.AttentionRequest) *core.Selection {
	t.Helper()
	s, err := flexprefill.New(kernel.New(backends.Best(t))).Select(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryRuleKeepsColumnZeroAndTheDiagonal(t *testing.T) {
	for _, rule := range []string{"released", "fixed", "paper"} {
		for _, tau := range []float64{0, 1} {
			req := request.Random(4, shape)
			req.Params = params(core.Params{"rule": rule, "tau": tau})
			if rule == "paper" { // single diagonals soon touch every tile
				req.Params["min_budget"], req.Params["gamma"] = int64(0), 0.2
			}
			s := selection(t, req)
			want := map[float64]string{0: "vertical_slash", 1: "query_aware"}[tau]
			for h, report := range s.Heads {
				if report.Pattern != want {
					t.Errorf("%s, tau %g, head %d: pattern %q, want %q", rule, tau, h, report.Pattern, want)
				}
				if report.Density >= 1 {
					t.Errorf("%s, tau %g, head %d: density %g", rule, tau, h, report.Density)
				}
				for i := range s.Mask.Sequences[0].QueryBlocks {
					if row := s.Mask.Row(0, h, i); row[0] != 0 || row[len(row)-1] != int32(i) {
						t.Fatalf("%s, tau %g, head %d, query block %d keeps %v", rule, tau, h, i, row)
					}
				}
			}
		}
	}
}

// The last rows of the paper's rule must hold gamma of the mass of the
// representative rows, since columns alone reach it.
func TestPaperReachesGammaOnItsOwnRows(t *testing.T) {
	for _, gamma := range []float64{0.1, 0.2, 0.3} { // more, by token, soon touches every tile
		req := request.Random(4, shape)
		req.Params = params(core.Params{"rule": "paper", "tau": 0.0, "gamma": gamma, "min_budget": int64(0)})
		response, err := flexprefill.New(kernel.New(backends.Best(t))).(core.Attender).Attend(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		for h, report := range response.Report.Heads {
			if report.ProbeRows != 32 || !(*report.Coverage >= gamma-1e-5) {
				t.Errorf("gamma %g, head %d: coverage %g on %d rows", gamma, h, *report.Coverage, report.ProbeRows)
			}
		}
	}
}

func TestFixedIsReleasedWhereThatIsRight(t *testing.T) {
	even := shape
	even.Queries, even.Keys = 1024, 1024
	req := request.Random(9, even)
	req.Params = core.Params{"block_size": int64(128), "min_budget": int64(256), "gamma": 0.6, "rule": "released"}
	released := selection(t, req)
	req.Params["rule"] = "fixed"
	if !released.Mask.Equal(selection(t, req).Mask) {
		t.Error("with blocks of 128 that divide the prompt the two rules must agree")
	}
}

func TestGammaPerHead(t *testing.T) {
	req := request.Random(4, shape)
	req.Params = params(core.Params{"gamma": []float64{0.3, 0.99, 0.3, 0.99}, "tau": 0.0})
	s := selection(t, req)
	if !(s.Heads[0].Density < s.Heads[1].Density && s.Heads[2].Density < s.Heads[3].Density) {
		t.Errorf("densities %g %g %g %g do not follow gamma", s.Heads[0].Density, s.Heads[1].Density, s.Heads[2].Density, s.Heads[3].Density)
	}
	req.Params["gamma"] = []float64{0.3, 0.9}
	if _, err := flexprefill.New(kernel.New(backends.Best(t))).Select(context.Background(), req); err == nil {
		t.Error("two gammas for four heads: no error")
	}
}

func TestBudgets(t *testing.T) {
	req := request.Random(4, shape)
	req.Params = params(core.Params{"max_budget": int64(64), "tau": 0.0})
	for h, report := range selection(t, req).Heads {
		// Two columns and two diagonals, column 0 and the diagonal among them.
		if most := int64(4 * 19); report.Kept > most {
			t.Errorf("head %d keeps %d tiles, a budget of two columns and diagonals at most %d", h, report.Kept, most)
		}
	}
	req.Params = params(core.Params{"min_budget": int64(600)})
	if s := selection(t, req); s.Mask != nil || s.Reason == "" {
		t.Errorf("a prompt within the smallest budget must be dense with a reason, not %q", s.Reason)
	}
}

func TestNotCausalIsDense(t *testing.T) {
	req := request.Random(4, shape)
	req.Causal, req.Params = false, params(nil)
	if s := selection(t, req); s.Mask != nil || s.Reason == "" {
		t.Error("want dense with a reason")
	}
}

// What Info promises of chunks: vertical-slash heads of the last chunk keep the
// tiles of the one-shot call.
func TestLastChunkKeepsTheSameColumnsAndSlashes(t *testing.T) {
	whole := request.Random(4, shape)
	whole.Params = params(core.Params{"tau": 0.0})
	want := selection(t, whole).Mask
	for _, first := range []int{96, 250, 568} {
		chunk := *whole
		view, err := whole.Query.Narrow(2, first, 600-first)
		if err != nil {
			t.Fatal(err)
		}
		chunk.Query, chunk.QueryOffset = view, []int64{int64(first)}
		got := selection(t, &chunk).Mask
		for h := range 4 {
			for i := range got.Sequences[0].QueryBlocks {
				at := got.Sequences[0].FirstQueryBlock + i
				if !slices.Equal(got.Row(0, h, i), want.Row(0, h, at)) {
					t.Fatalf("chunk from %d, head %d, query block %d: %v, want %v", first, h, at, got.Row(0, h, i), want.Row(0, h, at))
				}
			}
		}
	}
}

func TestPackedAndBatchedAreAsAlone(t *testing.T) {
	one := request.Random(4, shape)
	one.Params = params(nil)
	packed := *one
	packed.QueryOffset, packed.CuSeqlens = nil, []int64{0, 300, 600}
	got := selection(t, &packed)
	for s, start := range []int{0, 300} {
		alone := *one
		alone.Query, _ = one.Query.Narrow(2, start, 300)
		alone.Key, _ = one.Key.Narrow(2, start, 300)
		alone.Value, _ = one.Value.Narrow(2, start, 300)
		alone.QueryOffset = nil
		single := selection(t, &alone)
		for h := range 4 {
			for i := range got.Mask.Sequences[s].QueryBlocks {
				if !slices.Equal(got.Mask.Row(s, h, i), single.Mask.Row(0, h, i)) {
					t.Fatalf("segment %d, head %d, query block %d differs", s, h, i)
				}
			}
		}
	}
	padded := *one
	padded.KeyStart = []int64{300}
	right := selection(t, &padded)
	for h := range 4 {
		for i := range right.Mask.Sequences[0].QueryBlocks {
			if !slices.Equal(right.Mask.Row(0, h, i), got.Mask.Row(1, h, i)) {
				t.Fatalf("left padding, head %d, query block %d differs", h, i)
			}
		}
	}
}

func TestBlockSizeMustSuitTheKernel(t *testing.T) {
	req := request.Random(4, shape)
	req.Params = params(core.Params{"block_size": int64(40)})
	_, err := flexprefill.New(kernel.New(backends.Best(t))).Select(context.Background(), req)
	if e := core.AsError(err); e == nil || e.Kind != core.ErrInvalidArgument {
		t.Errorf("error %v, want invalid_argument", err)
	}
}

// A probability that underflows is NaN in the released code, which makes the
// head vertical-slash; the fixed rule counts it as nothing.
func TestZeroProbabilities(t *testing.T) {
	for rule, want := range map[string]string{"released": "vertical_slash", "fixed": "query_aware"} {
		req := request.Random(4, shape)
		req.Scale, req.Params = 300, params(core.Params{"rule": rule, "tau": 1.0})
		for h, report := range selection(t, req).Heads {
			if report.Pattern != want || (report.JSDistance == nil) != (rule == "released") {
				t.Errorf("%s, head %d: pattern %q, distance %v", rule, h, report.Pattern, report.JSDistance)
			}
		}
	}
}
