package probe_test

import (
	"context"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/probe"
	"github.com/trivium-ml/trivium/strategies/attention/streaming"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// The promise, on rows that the rule did not draw: every head of every draw.
func TestPromiseHoldsOnOtherRows(t *testing.T) {
	shape := request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 2048, Keys: 2048, Dim: 32}
	s := probe.New(kernel.New(backends.Best(t))).(core.Attender)
	for _, gamma := range []float64{0.5, 0.8, 0.95} {
		missed, heads, density := 0, 0, 0.0
		for seed := range int64(5) {
			req := request.Random(uint64(seed), shape)
			req.Seed, req.ProbeRows = seed, 512
			req.Params = core.Params{"gamma": gamma, "block_size": int64(64)}
			response, err := s.Attend(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			density += response.Report.Density / 5
			for _, h := range response.Report.Heads {
				heads++
				if !(*h.Coverage >= gamma) {
					missed++
					t.Logf("gamma %g, seed %d, head %d: coverage %g on other rows", gamma, seed, h.Head, *h.Coverage)
				}
			}
		}
		t.Logf("gamma %g: density %.3f", gamma, density)
		if missed > 0 {
			t.Errorf("gamma %g: %d of %d heads missed it", gamma, missed, heads)
		}
		if density > 0.9 {
			t.Errorf("gamma %g: density %g: the rule keeps nearly everything", gamma, density)
		}
	}
}

// A proven promise is of gamma itself, and holds on all rows: delta is small
// enough for these draws never to trip it.
func TestProvenPromise(t *testing.T) {
	k := kernel.New(backends.Best(t))
	req := request.Random(4, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 2048, Keys: 2048, Dim: 32})
	req.Bound, req.Delta = core.BoundProven, 1e-4
	for _, c := range []struct {
		s      core.AttentionStrategy
		params core.Params
	}{
		{probe.New(k), core.Params{"gamma": 0.8, "block_size": int64(64)}},
		{streaming.New(k), core.Params{"gamma": 0.8, "block_size": int64(64), "sink": int64(64), "recent": int64(128), "coverage": "enforce"}},
	} {
		req.Params = c.params
		for req.Seed = range 3 {
			req.ProbeRows = 0
			promised, err := c.s.(core.Attender).Attend(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			req.ProbeRows = 2048
			measured, err := c.s.(core.Attender).Attend(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			for i, h := range promised.Report.Heads {
				if h.Bound != core.BoundProven || h.Delta != 1e-4 || *h.CoverageLower != 0.8 || h.ProbeRows != 256 || h.Density > 0.95 {
					t.Errorf("%s, seed %d, head %d: promise %g (%s, delta %g) by %d rows at density %g",
						c.s.Info().Name, req.Seed, i, *h.CoverageLower, h.Bound, h.Delta, h.ProbeRows, h.Density)
				}
				if kept := *measured.Report.Heads[i].CoverageLower; !(kept >= 0.8) {
					t.Errorf("%s, seed %d, head %d: keeps %g of all rows, .8 was promised", c.s.Info().Name, req.Seed, i, kept)
				}
			}
		}
	}
	req.ProbeRows, req.Params["coverage"] = 0, "report"
	_, err := streaming.New(k).(core.Attender).Attend(context.Background(), req)
	if typed := core.AsError(err); typed == nil || typed.Kind != core.ErrInvalidArgument {
		t.Errorf("a proof of what promises nothing, without rows: %v, want invalid_argument", err)
	}
}

func TestEnforceKeepsTheStrategysBlocksAndThePromise(t *testing.T) {
	shape := request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 2048, Keys: 2048, Dim: 32}
	s := streaming.New(kernel.New(backends.Best(t))).(core.Attender)
	req := request.Random(3, shape)
	req.WantMask, req.ProbeRows = true, 512
	req.Params = core.Params{"sink": int64(64), "recent": int64(128), "block_size": int64(64)}
	before, err := s.Attend(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	req.Params["coverage"], req.Params["gamma"] = "enforce", 0.8
	after, err := s.Attend(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	for h, report := range after.Report.Heads {
		if *before.Report.Heads[h].Coverage >= 0.8 {
			t.Fatalf("head %d has %g of its own: the case shows nothing", h, *before.Report.Heads[h].Coverage)
		}
		if !(*report.Coverage >= 0.8) || !(report.Density < 1) {
			t.Errorf("head %d: coverage %g at density %g", h, *report.Coverage, report.Density)
		}
		if added := report.Kept - before.Report.Heads[h].Kept; report.BlocksAdded != added || report.Pattern != "streaming" {
			t.Errorf("head %d: reports %d blocks added to %q, but %d were", h, report.BlocksAdded, report.Pattern, added)
		}
		for i := range after.Mask.Sequences[0].QueryBlocks {
			for _, column := range before.Mask.Row(0, h, i) {
				if _, ok := slices.BinarySearch(after.Mask.Row(0, h, i), column); !ok {
					t.Fatalf("head %d, query block %d lost key block %d", h, i, column)
				}
			}
		}
	}
}

func TestShortPromptsAreDense(t *testing.T) {
	req := request.Random(3, request.Shape{Batch: 1, Heads: 2, KVHeads: 1, Queries: 1024, Keys: 1024, Dim: 16})
	selection, err := probe.New(kernel.New(backends.Best(t))).Select(context.Background(), req)
	if err != nil || selection.Mask != nil || selection.Reason == "" {
		t.Errorf("selection %+v, error %v: want dense with a reason", selection, err)
	}
}

// A long prompt takes the other branch: sparse scoring rows, separate checks.
func TestLongPrompts(t *testing.T) {
	if testing.Short() {
		t.Skip("16k tokens")
	}
	req := request.Random(3, request.Shape{Batch: 1, Heads: 2, KVHeads: 1, Queries: 16 << 10, Keys: 16 << 10, Dim: 16})
	selection, err := probe.New(kernel.New(backends.Best(t))).Select(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range selection.Heads {
		if !(*h.CoverageLower >= 0.9) || h.ProbeRows > 256 || h.ProbeRows < 240 {
			t.Errorf("head %d: bound %g on %d rows", h.Head, *h.CoverageLower, h.ProbeRows)
		}
	}
}
