package kernel

import (
	"context"
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// In a tile that lies in one band, the score of the means is the mean of the
// scores, for a plan that moves all positions of the band alike.
func TestSimilarityIsTheMeanScore(t *testing.T) {
	const block, tokens, dim = 16, 160, 8
	frequencies := []float64{1, 0.1, 0.01}
	near := core.Band{Chunk: 1, Low: math.MinInt64, High: 64, Query: core.Identity(), Key: core.Identity()}
	far := core.Band{Chunk: 1, Low: 64, High: math.MaxInt64, Query: core.Shift(-50), Key: core.Identity()}
	plans := map[string]*core.PositionPlan{"true positions": nil}
	for name, interleaved := range map[string]bool{"string": false, "string interleaved": true} {
		plans[name] = &core.PositionPlan{InvFreq: frequencies, AppliedInvFreq: frequencies, AttentionScale: 1.1, Interleaved: interleaved, Bands: []core.Band{near, far}}
	}
	for name, plan := range plans {
		t.Run(name, func(t *testing.T) {
			req := request.Random(1, request.Shape{Batch: 1, Heads: 2, KVHeads: 1, Queries: 100, Keys: tokens, Dim: dim})
			req.Position = plan
			if err := req.Validate(); err != nil {
				t.Fatal(err)
			}
			call, err := New(oracle.New()).open(context.Background(), core.Info{}, req, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer call.Close()
			queries, _ := call.Session.Pool(context.Background(), true, block, 1)
			keys, _ := call.Session.Pool(context.Background(), false, block, 1)
			tiles := newTiles(req.BlockExtents(block)[0], block, true, 0)
			got := call.Similarity(call.QueryMeans(0, block, queries[1]), call.KeyMeans(0, block, keys[0]), tiles.Visible)
			for row := range tiles.QueryBlocks {
				for j := range tiles.Diagonal(row) {
					if plan != nil && !inOneBand(plan, tiles.Diagonal(row), j, block) {
						continue
					}
					want := meanScore(req, plan, tiles.Diagonal(row), j, block)
					if !(math.Abs(float64(got.Row(row)[j])-want) <= 1e-5*(1+math.Abs(want))) {
						t.Errorf("tile (%d, %d): %g, want %g", row, j, got.Row(row)[j], want)
					}
				}
			}
		})
	}
}

func inOneBand(plan *core.PositionPlan, i, j, block int) bool {
	first := plan.Band(int64(i*block), int64(j*block+block-1))
	return first == plan.Band(int64(i*block+block-1), int64(j*block))
}

func meanScore(req *core.AttentionRequest, plan *core.PositionPlan, i, j, block int) float64 {
	sum, count := 0.0, 0.0
	for m := i * block; m < (i+1)*block; m++ {
		row := m - int(req.QueryOffset[0])
		if row < 0 || row >= req.Query.Dim(2) {
			continue
		}
		for n := j * block; n < (j+1)*block; n++ {
			q, k := request.Row(req.Query, 0, 1, row), request.Row(req.Key, 0, 0, n)
			scale := req.Scale
			if plan != nil {
				band := plan.Bands[plan.Band(int64(m), int64(n))]
				q = turned(plan, q, band.Query.Position(int64(m))-float64(m))
				scale *= plan.AttentionScale * plan.AttentionScale
			}
			for c := range q {
				sum += scale * q[c] * k[c]
			}
			count++
		}
	}
	return sum / count
}

func turned(plan *core.PositionPlan, row []float64, by float64) []float64 {
	out := append([]float64(nil), row...)
	for f, frequency := range plan.InvFreq {
		a, b := f, f+len(plan.InvFreq)
		if plan.Interleaved {
			a, b = 2*f, 2*f+1
		}
		sin, cos := math.Sincos(frequency * by)
		out[a], out[b] = row[a]*cos-row[b]*sin, row[b]*cos+row[a]*sin
	}
	return out
}
