package xattention_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/xattention"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

const (
	tokens = 200
	block  = 32
	stride = 8
)

// antidiagonals is the block scores straight from the definition: the pairs
// (rS + S-1-t, cS + t) of a square add up to its logit.
func antidiagonals(req *core.AttentionRequest, head int) [][]float64 {
	squares := (tokens + stride - 1) / stride
	blocks := (tokens + block - 1) / block
	scores := make([][]float64, blocks)
	for i := range scores {
		scores[i] = make([]float64, blocks)
	}
	for r := range squares {
		weights, sum := make([]float64, r+1), 0.0
		for c := range weights {
			logit := 0.0
			for t := range stride {
				i, j := r*stride+stride-1-t, c*stride+t
				if i >= tokens || j >= tokens {
					continue
				}
				q, k := request.Row(req.Query, 0, head, i), request.Row(req.Key, 0, head/2, j)
				for d := range q {
					logit += q[d] * k[d]
				}
			}
			weights[c] = math.Exp(logit / stride / math.Sqrt(float64(req.Query.Dim(3))))
			sum += weights[c]
		}
		for c, w := range weights {
			scores[r*stride/block][c*stride/block] += w / sum
		}
	}
	return scores
}

func TestBlocksReachTheThreshold(t *testing.T) {
	const threshold = 0.7
	req := request.Random(2, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: tokens, Keys: tokens, Dim: 16})
	req.Params = core.Params{"threshold": threshold, "stride": int64(stride), "block_size": int64(block)}
	selection, err := xattention.New(kernel.New(oracle.New())).Select(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	for head := range 4 {
		for i, row := range antidiagonals(req, head) {
			kept := selection.Mask.Row(0, head, i)
			if kept[0] != 0 || kept[len(kept)-1] != int32(i) {
				t.Fatalf("head %d, query block %d keeps %v: want column 0 and the diagonal among them", head, i, kept)
			}
			total, sum, least := 0.0, 0.0, math.Inf(1)
			for _, s := range row {
				total += s
			}
			for _, j := range kept {
				sum += row[j]
				if j != 0 && j != int32(i) {
					least = min(least, row[j])
				}
			}
			if !(sum >= threshold*total*(1-1e-6)) {
				t.Errorf("head %d, query block %d: %v holds %g of %g", head, i, kept, sum, total)
			}
			if len(kept) > 2 && sum-least >= threshold*total*(1+1e-6) {
				t.Errorf("head %d, query block %d: %v holds %g of %g, one block too many", head, i, kept, sum, total)
			}
			for j := range i {
				if !slices.Contains(kept, int32(j)) && row[j] > least*(1+1e-6) {
					t.Errorf("head %d, query block %d: block %d with %g was dropped, one with %g kept", head, i, j, row[j], least)
				}
			}
		}
	}
}

func TestStrideMustDivideTheBlock(t *testing.T) {
	req := request.Random(2, request.Shape{Batch: 1, Heads: 1, KVHeads: 1, Queries: tokens, Keys: tokens, Dim: 16})
	req.Params = core.Params{"stride": int64(24), "block_size": int64(block)}
	_, err := xattention.New(kernel.New(oracle.New())).Select(context.Background(), req)
	if e := core.AsError(err); e == nil || e.Kind != core.ErrInvalidArgument {
		t.Errorf("error %v, want invalid_argument", err)
	}
}
