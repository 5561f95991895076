package oracle_test

import (
	"context"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/flexprefill"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

func newRequest(params core.Params) *core.AttentionRequest {
	req := request.Random(2, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 700, Keys: 700, Dim: 16})
	req.ProbeRows, req.WantMask, req.Params = 700, true, params
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

func TestGammaIsMetAndNotMore(t *testing.T) {
	k := kernel.New(backends.Best(t))
	for _, gamma := range []float64{0.6, 0.9} {
		for h, report := range attend(t, oracle.New(k), newRequest(core.Params{"gamma": gamma, "block_size": int64(32)})).Report.Heads {
			// A tile holds a block of rows at most: no head can be farther above gamma.
			if !(*report.Coverage >= gamma-1e-5 && *report.Coverage <= gamma+32.0/700) {
				t.Errorf("gamma %g, head %d: coverage %g over all rows", gamma, h, *report.Coverage)
			}
		}
	}
}

func TestNoSelectorDoesWithLess(t *testing.T) {
	k := kernel.New(backends.Best(t))
	other := attend(t, flexprefill.New(k), newRequest(core.Params{"gamma": 0.7, "min_budget": int64(64), "block_size": int64(32)})).Report
	gammas := make([]float64, 4)
	for h := range gammas {
		gammas[h] = min(1, *other.Heads[h].Coverage-1e-4)
	}
	for h, report := range attend(t, oracle.New(k), newRequest(core.Params{"gamma": gammas, "block_size": int64(32)})).Report.Heads {
		if report.Kept > other.Heads[h].Kept {
			t.Errorf("head %d: %d tiles for a coverage of %g, FlexPrefill needs %d", h, report.Kept, gammas[h], other.Heads[h].Kept)
		}
	}
}
