package verticalslash_test

import (
	"context"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/verticalslash"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

const (
	tokens = 640
	block  = 32
	loud   = 333 // the key that every query looks at
	echo   = 200 // the distance that every query looks at
)

// A head whose queries look at one key and at one distance: a column and a
// diagonal of mass.
func columnAndDiagonal() *core.AttentionRequest {
	req := &core.AttentionRequest{Causal: true}
	req.Query = request.Make(tensor.Float32, 1, 1, tokens, tokens)
	req.Key = request.Make(tensor.Float32, 1, 1, tokens, tokens)
	req.Value = request.Make(tensor.Float32, 1, 1, tokens, tokens)
	request.Fill(req.Key, func(at [4]int) float64 {
		if at[2] == at[3] {
			return 1
		}
		return 0
	})
	request.Fill(req.Query, func(at [4]int) float64 {
		if at[3] == loud || at[3] == at[2]-echo {
			return 300
		}
		return 0
	})
	return req
}

func TestTheHeavyColumnAndDiagonalAreKept(t *testing.T) {
	for _, granularity := range []string{"block", "token"} {
		req := columnAndDiagonal()
		// Two blocks of each: the forced one and the heaviest. By token: the forced 30 and the heaviest.
		tokensKept := map[string]int64{"block": 2 * block, "token": 31}[granularity]
		req.Params = core.Params{"vertical": tokensKept, "slash": tokensKept, "granularity": granularity, "block_size": int64(block)}
		selection, err := verticalslash.New(kernel.New(oracle.New())).Select(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		for i := range tokens / block {
			want := []int32{0, int32(i)}
			if granularity == "token" && i > 0 {
				want = append(want, int32(i-1)) // the nearest diagonals cross into it
			}
			for _, j := range []int{loud / block, i - echo/block} {
				if j >= 0 && j <= i {
					want = append(want, int32(j))
				}
			}
			if j := i - echo/block - 1; granularity == "token" && j >= 0 {
				want = append(want, int32(j))
			}
			slices.Sort(want)
			if got := selection.Mask.Row(0, 0, i); !slices.Equal(got, slices.Compact(want)) {
				t.Errorf("%s, query block %d keeps %v, want %v", granularity, i, got, slices.Compact(want))
			}
		}
	}
}
