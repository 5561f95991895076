package flashprefill_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/flashprefill"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

const (
	tokens = 500
	block  = 32
)

// scores is the sum of exp(logit) of the block's queries against the mean of
// each key block wholly before it, straight from the definition.
func scores(req *core.AttentionRequest, head, row int) []float64 {
	dim := req.Query.Dim(3)
	sums := make([]float64, row)
	for j := range sums {
		mean := make([]float64, dim)
		for k := range block {
			for d, x := range request.Row(req.Key, 0, head/2, j*block+k) {
				mean[d] += x / block
			}
		}
		for i := row * block; i < min(tokens, (row+1)*block); i++ {
			logit := 0.0
			for d, x := range request.Row(req.Query, 0, head, i) {
				logit += x * mean[d] / math.Sqrt(float64(dim))
			}
			sums[j] += math.Exp(logit)
		}
	}
	return sums
}

func TestBlocksComeNearTheBest(t *testing.T) {
	const alpha, sinks, window, last = 0.6, 1, 2, 2
	req := request.Random(2, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: tokens, Keys: tokens, Dim: 16})
	req.Params = core.Params{"alpha": alpha, "sink_blocks": int64(sinks), "window_blocks": int64(window), "last_blocks": int64(last), "block_size": int64(block)}
	selection, err := flashprefill.New(kernel.New(oracle.New())).Select(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	blocks := selection.Mask.Sequences[0].QueryBlocks
	for head := range 4 {
		for i := range blocks {
			sums := scores(req, head, i)
			best := 0.0
			for _, s := range sums {
				best = max(best, s)
			}
			for j := range i + 1 {
				want := j < sinks || j > i-window || i >= blocks-last || sums[j] >= alpha*best
				got := slices.Contains(selection.Mask.Row(0, head, i), int32(j))
				if got != want && !(j < i && math.Abs(sums[j]-alpha*best) < 1e-5*best) {
					t.Errorf("head %d, tile (%d, %d): kept %v, want %v", head, i, j, got, want)
				}
			}
		}
	}
}

func TestFewestBlocksAndDenseLayers(t *testing.T) {
	req := request.Random(2, request.Shape{Batch: 1, Heads: 1, KVHeads: 1, Queries: tokens, Keys: tokens, Dim: 16})
	req.Params = core.Params{"alpha": 1.0, "min_blocks": int64(5), "window_blocks": int64(1), "sink_blocks": int64(1), "block_size": int64(block), "dense_layers": int64(4)}
	req.Layer = 4
	s := flashprefill.New(kernel.New(oracle.New()))
	selection, err := s.Select(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if row := selection.Mask.Row(0, 0, 10); len(row) < 6 || len(row) > 7 {
		t.Errorf("query block 10 keeps %v: want the diagonal, column 0 and the best five", row)
	}
	req.Layer = 3
	if selection, err = s.Select(context.Background(), req); err != nil || selection.Mask != nil {
		t.Errorf("layer 3 of 4 dense ones: mask %v, error %v", selection.Mask, err)
	}
}

// The correction brings the output nearer to dense, and is what the oracle
// computes; coverage is told of the kept blocks alone.
func TestMeanCorrection(t *testing.T) {
	outputs := map[string]*core.AttentionRequest{}
	responses := map[string]*core.AttentionResponse{}
	attend := func(name string, k *kernel.Kernel, correct, dense bool) {
		req := request.Random(3, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: tokens, Keys: tokens, Dim: 16})
		// Mild attention, which a mean stands for well.
		request.Fill(req.Key, func(at [4]int) float64 { return 0.3 * request.Row(req.Key, at[0], at[1], at[2])[at[3]] })
		req.Params = core.Params{"alpha": 0.9, "window_blocks": int64(1), "sink_blocks": int64(1), "last_blocks": int64(0), "block_size": int64(block), "mean_correction": correct}
		req.ForceDense, req.ProbeRows = dense, 200
		response, err := flashprefill.New(k).(core.Attender).Attend(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		outputs[name], responses[name] = req, response
	}
	best := kernel.New(backends.Best(t))
	attend("dense", best, false, true)
	attend("plain", best, false, false)
	attend("corrected", best, true, false)
	attend("oracle", kernel.New(oracle.New()), true, false)
	if d := request.Difference(outputs["corrected"].Output, outputs["oracle"].Output); !(d <= 2e-5) {
		t.Errorf("output differs from the oracle by %g", d)
	}
	if d := request.LSEDifference(outputs["corrected"].LSE, outputs["oracle"].LSE); !(d <= 2e-5) {
		t.Errorf("lse differs from the oracle by %g", d)
	}
	plain, corrected := request.LSEDifference(outputs["plain"].LSE, outputs["dense"].LSE), request.LSEDifference(outputs["corrected"].LSE, outputs["dense"].LSE)
	if !(corrected < plain/2) {
		t.Errorf("lse is %g from dense corrected, %g plain: want less than half", corrected, plain)
	}
	for h, report := range responses["plain"].Report.Heads {
		if got := *responses["corrected"].Report.Heads[h].Coverage; math.Abs(got-*report.Coverage) > 1e-5 {
			t.Errorf("head %d: coverage %g corrected, %g plain", h, got, *report.Coverage)
		}
	}
}
