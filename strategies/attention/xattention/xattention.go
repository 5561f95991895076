// Package xattention scores tiles by sums along antidiagonals: of each stride x
// stride square of pairs one antidiagonal counts, which meets every column and
// every diagonal of it (XAttention, arXiv 2503.16428).
package xattention

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "xattention",
		Summary: "per query block the tiles whose antidiagonal scores reach a threshold",
		Paper:   "arXiv:2503.16428",
		Parameters: kernel.WithCoverage([]core.Parameter{
			{Name: "threshold", Type: core.Float, Default: 0.9, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), PerHead: true, Doc: "share of a query block's score to keep"},
			{Name: "stride", Type: core.Int, Default: int64(16), Unit: "tokens", Min: core.Bound(2), Max: core.Bound(64), Doc: "side of the squares; 8 or 16 in the paper; it divides block_size"},
			{Name: "norm", Type: core.Float, Default: 1.0, Min: core.Bound(0), OpenMin: true, Doc: "divisor of the scores"},
			kernel.TileSide(),
		}),
		Capabilities: core.Capabilities{ChunkRule: "same"},
		Notes: []string{
			"A query block keeps the same tiles in any chunk that holds it whole; where a chunk cuts it, each part is judged by the rows it has.",
			"Column 0 and the diagonal are kept and count first towards the threshold, as in the released code.",
			"Scores are those of true positions, without the bands of a position plan.",
			"cuda: chosen on the device with block_size 128 and stride 8 or 16, on the host with multiples of 128 and other strides.",
		},
	}, selectBlocks, selectOnDevice)
}

const notCausal = "xattention selects for causal attention only"

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	stride := call.Params.Int("stride")
	if size%stride != 0 {
		return nil, core.Invalid("attention.xattention", "stride %d, block_size %d: want a stride that divides it", stride, size)
	}
	if !call.Request.Causal {
		return call.Dense("dense", notCausal), nil
	}
	scale := call.Request.Scale / (float64(stride) * call.Params.Float("norm"))
	scores, err := call.Session.SquareMass(ctx, stride, size, scale)
	if err != nil {
		return nil, err
	}
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		h.Report.Pattern = "antidiagonal"
		of := &scores[call.Slot(h.Sequence, h.Head)]
		for row := range h.QueryBlocks {
			keepRow(h, row, of.Row(row), call.Params.FloatAt("threshold", h.Head))
		}
		return nil
	})
}

// keepRow keeps column 0, the diagonal, and the heaviest others until their sum
// reaches the threshold.
func keepRow(h *kernel.Head, row int, scores []float32, threshold float64) {
	wanted := 0.0
	for _, score := range scores {
		wanted += threshold * float64(score)
	}
	for _, forced := range []int{0, h.Diagonal(row)} {
		if forced < len(scores) && !h.Kept(row, forced) {
			h.Keep(row, forced)
			wanted -= float64(scores[forced])
		}
	}
	for _, j := range mass.Falling(scores) {
		if wanted <= 0 {
			return
		}
		if !h.Kept(row, j) {
			h.Keep(row, j)
			wanted -= float64(scores[j])
		}
	}
}
