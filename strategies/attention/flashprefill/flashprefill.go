// Package flashprefill holds every query against the mean of each key block and
// keeps the blocks that come near the best one: no sort, no cumulative sum
// (FlashPrefill, arXiv 2603.06199).
package flashprefill

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "flashprefill",
		Summary: "per query block the key blocks that score at least alpha of the best",
		Paper:   "arXiv:2603.06199",
		Parameters: kernel.WithCoverage([]core.Parameter{
			{Name: "alpha", Type: core.Float, Default: 0.12, Min: core.Bound(0), Max: core.Bound(1), PerHead: true, Doc: "share of the best score; .18 for Llama-3.1-8B, .08 for Qwen2.5-7B, .12 for Qwen3-30B"},
			{Name: "sink_blocks", Type: core.Int, Default: int64(2), Unit: "blocks", Min: core.Bound(1), Doc: "first key blocks, always kept"},
			{Name: "window_blocks", Type: core.Int, Default: int64(4), Unit: "blocks", Min: core.Bound(1), Doc: "nearest key blocks, always kept, the diagonal among them"},
			{Name: "last_blocks", Type: core.Int, Default: int64(2), Unit: "blocks", Min: core.Bound(0), Doc: "last query blocks, which see everything; 2 in v1, 8 in v2"},
			{Name: "min_blocks", Type: core.Int, Default: int64(0), Unit: "blocks", Min: core.Bound(0), Doc: "fewest key blocks to keep by score"},
			{Name: "dense_layers", Type: core.Int, Default: int64(0), Unit: "layers", Min: core.Bound(0), Doc: "first layers, which stay dense; 4 in v2"},
			{Name: kernel.MeanCorrection, Type: core.Bool, Default: false, Doc: "each dropped block before a query block counts as its keys at their mean, with the mean of their values, as in v2"},
			kernel.TileSide(),
		}),
		Capabilities: core.Capabilities{ChunkRule: "superset"},
		Notes: []string{
			"Key blocks that lie wholly before the query block are scored.",
			"With mean_correction lse counts the dropped blocks too, and coverage is still that of the kept ones; a position plan of several bands refuses it.",
			"A query block keeps the same tiles in any chunk that holds it whole, and all of them when it is among the last of its chunk.",
			"Scores are those of true positions, without the bands of a position plan.",
			"cuda: chosen on the device with block_size 128, on the host with multiples of it; mean_correction is refused.",
		},
	}, selectBlocks, selectOnDevice)
}

// denseReason says why a call is attended to densely; "": it is not.
func denseReason(r *core.AttentionRequest, params core.Params) string {
	switch {
	case r.Layer >= 0 && r.Layer < params.Int("dense_layers"):
		return "one of the first layers"
	case !r.Causal:
		return "flashprefill selects for causal attention only"
	}
	return ""
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	if reason := denseReason(call.Request, call.Params); reason != "" {
		return call.Dense("dense", reason), nil
	}
	scores, err := call.Session.MeanScores(ctx, size)
	if err != nil {
		return nil, err
	}
	sinks, window, last := call.Params.Int("sink_blocks"), call.Params.Int("window_blocks"), call.Params.Int("last_blocks")
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		h.Report.Pattern = "max_threshold"
		of := &scores[call.Slot(h.Sequence, h.Head)]
		for row := range h.QueryBlocks {
			if row >= h.QueryBlocks-last {
				h.KeepRow(row)
				continue
			}
			h.KeepRange(row, 0, sinks)
			h.KeepRange(row, h.Diagonal(row)-window+1, h.Diagonal(row)+1)
			keepByScore(h, row, of.Row(row)[:min(h.Diagonal(row), h.KeyBlocks)], call.Params.FloatAt("alpha", h.Head), call.Params.Int("min_blocks"))
		}
		return nil
	})
}

// keepByScore keeps what reaches alpha of the best, and at least the best few.
func keepByScore(h *kernel.Head, row int, scores []float32, alpha float64, fewest int) {
	best := 0.0
	for _, score := range scores {
		best = max(best, float64(score))
	}
	for j, score := range scores {
		if float64(score) >= alpha*best {
			h.Keep(row, j)
		}
	}
	if fewest == 0 {
		return
	}
	for _, j := range mass.Largest(scores, min(fewest, len(scores))) {
		h.Keep(row, j)
	}
}
