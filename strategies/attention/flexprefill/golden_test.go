package flexprefill_test

import (
	"context"
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/flexprefill"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// The released code ran in float32 on these float16 inputs; its outputs are
// rounded to float16.
const (
	outputTolerance   = 2e-3
	lseTolerance      = 1e-3
	distanceTolerance = 1e-5
)

func TestGolden(t *testing.T) {
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		testGolden(t, flexprefill.New(kernel.New(backend)), request.Golden.InProject)
	})
}

func TestLargeGolden(t *testing.T) {
	testGolden(t, flexprefill.New(kernel.New(backends.Best(t))), func(g request.Golden) bool { return !g.InProject() })
}

func testGolden(t *testing.T, s core.AttentionStrategy, wanted func(request.Golden) bool) {
	for _, g := range request.Goldens(t) {
		if !wanted(g) {
			continue
		}
		t.Run(g.File, func(t *testing.T) {
			tensors := g.Open(t)
			req := goldenRequest(g, tensors)
			response, err := s.(core.Attender).Attend(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			checkBlocks(t, g, tensors, response)
			if d := request.Difference(req.Output, tensors["output"]); !(d <= outputTolerance) {
				t.Errorf("output differs by %g, want at most %g", d, outputTolerance)
			}
			if d := request.LSEDifference(req.LSE, tensors["lse"]); !(d <= lseTolerance) {
				t.Errorf("lse differs by %g, want at most %g", d, lseTolerance)
			}
		})
	}
}

func goldenRequest(g request.Golden, tensors map[string]*tensor.Tensor) *core.AttentionRequest {
	req := &core.AttentionRequest{Causal: true, WantMask: true, Query: widen(tensors["q"]), Key: widen(tensors["k"]), Value: widen(tensors["v"])}
	request.Outputs(req)
	req.Params = core.Params{"rule": "released", "gamma": g.Gamma, "tau": g.Tau, "block_size": int64(g.BlockSize),
		"gqa_interleave": g.GQAInterleave, "min_budget": int64(0)}
	if g.MinBudget != nil {
		req.Params["min_budget"] = *g.MinBudget
	}
	if g.MaxBudget != nil {
		req.Params["max_budget"] = *g.MaxBudget
	}
	return req
}

func widen(half *tensor.Tensor) *tensor.Tensor {
	wide := request.Make(tensor.Float32, half.Dim(0), half.Dim(1), half.Dim(2), half.Dim(3))
	var row []float64
	request.Fill(wide, func(at [4]int) float64 {
		if at[3] == 0 {
			row = request.Row(half, at[0], at[1], at[2])
		}
		return row[at[3]]
	})
	return wide
}

func checkBlocks(t *testing.T, g request.Golden, tensors map[string]*tensor.Tensor, response *core.AttentionResponse) {
	t.Helper()
	blocks, offsets := request.Int32s(tensors["blocks"]), request.Int32s(tensors["head_offsets"])
	distances, _ := tensors["js_distance"].Float32s()
	for head := range g.Heads {
		want := map[int32]bool{}
		for _, b := range blocks[offsets[head]:offsets[head+1]] {
			want[b] = true
		}
		missing, extra := len(want), 0
		for i := range g.NumBlocks {
			for _, j := range response.Mask.Row(0, head, i) {
				if want[int32(i*g.NumBlocks)+j] {
					missing--
				} else {
					extra++
				}
			}
		}
		report := response.Report.Heads[head]
		if missing != 0 || extra != 0 {
			t.Errorf("head %d (%s): %d blocks missing, %d too many, of %d", head, report.Pattern, missing, extra, len(want))
		}
		if aware := report.Pattern == "query_aware"; aware != g.QueryAware[head] {
			t.Errorf("head %d: query-aware %v, want %v", head, aware, g.QueryAware[head])
		}
		if d := math.Abs(*report.JSDistance - float64(distances[head])); !(d <= distanceTolerance) {
			t.Errorf("head %d: Jensen-Shannon distance %g, want %g", head, *report.JSDistance, distances[head])
		}
	}
}
