// Package verticalslash keeps fixed budgets of key columns and diagonals, the
// ones that the last queries look at most (MInference, arXiv 2407.02490).
package verticalslash

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/pattern"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "verticalslash",
		Summary: "fixed budgets of columns and diagonals, chosen by the last queries",
		Paper:   "arXiv:2407.02490",
		Parameters: kernel.WithCoverage([]core.Parameter{
			{Name: "vertical", Type: core.Int, Default: int64(1000), Unit: "tokens", Min: core.Bound(0), Doc: "key columns to keep"},
			{Name: "slash", Type: core.Int, Default: int64(1024), Unit: "tokens", Min: core.Bound(0), Doc: "diagonals to keep"},
			{Name: "representative", Type: core.Int, Default: int64(64), Unit: "tokens", Min: core.Bound(1), Max: core.Bound(1024), Doc: "last queries that choose"},
			pattern.Granularity(),
			kernel.TileSide(),
			kernel.Segment(),
		}),
		Notes: []string{
			pattern.GranularityNote,
			"The first block of columns and the nearest of diagonals are always kept; by token the first and nearest 30.",
			"Chunks: the last queries of each chunk choose for it; those of a prompt's last chunk keep the tiles of the one-shot call.",
			kernel.SegmentNote,
		},
	}, selectBlocks, kernel.OnHost)
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	if !call.Request.Causal {
		return call.Dense("dense", "verticalslash selects for causal attention only"), nil
	}
	scores, err := call.Session.Representative(ctx, call.Params.Int("representative"))
	if err != nil {
		return nil, err
	}
	budget := pattern.VerticalSlash{Columns: call.Params.Int("vertical"), Slashes: call.Params.Int("slash"),
		Forced: 30, ByToken: call.Params.Text("granularity") == "token"}
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		h.Report.Pattern = "vertical_slash"
		slot := call.Slot(h.Sequence, h.Head)
		call.Measured(h.Sequence, h.Head, scores[slot].LSE)
		budget.Keep(h, scores[slot])
		h.KeepColumn(0)
		h.KeepSlash(0)
		return nil
	})
}
