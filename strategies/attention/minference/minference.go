// Package minference gives each head the pattern that an offline search found
// for it: streaming, vertical-slash or the likeliest blocks (MInference, arXiv
// 2407.02490).
package minference

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/pattern"
)

// lastQueries choose columns and diagonals; forced are kept in any case.
const (
	lastQueries = 64
	forced      = 30
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "minference",
		Summary: "a pattern for each head, found offline: streaming, vertical-slash or likeliest blocks",
		Paper:   "arXiv:2407.02490",
		Parameters: kernel.WithCoverage([]core.Parameter{
			{Name: "patterns", Type: core.String, Default: "", Doc: "JSON file in the released format, a list of layers; empty: every head is vertical-slash (1000, 6096)"},
			pattern.Granularity(),
			kernel.TileSide(),
			kernel.Segment(),
		}),
		Notes: []string{
			"The file is a list with an object for each layer, from head number to [pattern, first number, second number, score]: vertical_and_slash (columns, diagonals), stream_llm (sink, recent), block_sparse (blocks of a row, unused).",
			pattern.GranularityNote,
			"Chunks: the last queries of each chunk choose its columns and diagonals; those of a prompt's last chunk keep the tiles of the one-shot call. The other patterns keep the same tiles in any chunk.",
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
		return call.Dense("dense", "minference selects for causal attention only"), nil
	}
	patterns, err := readLayer(call.Params.Text("patterns"), call.Request.Layer, call.Heads)
	if err != nil {
		return nil, err
	}
	scores, err := call.Session.Representative(ctx, lastQueries)
	if err != nil {
		return nil, err
	}
	var queries, keys []hardware.Pooled
	if patterns.any(blockSparse) {
		if keys, err = call.Session.Pool(ctx, false, size, 1); err != nil {
			return nil, err
		}
		if queries, err = call.Session.Pool(ctx, true, size, 1); err != nil {
			return nil, err
		}
	}
	byToken := call.Params.Text("granularity") == "token"
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		p, slot := patterns[h.Head], call.Slot(h.Sequence, h.Head)
		h.Report.Pattern = p.name
		switch p.name {
		case streaming:
			pattern.Streaming(h, 0, p.first, p.second, 0)
		case blockSparse:
			pattern.TopBlocks(h, call.Similarity(call.QueryMeans(h.Sequence, size, queries[slot]),
				call.KeyMeans(h.Sequence, size, keys[call.KeySlot(h.Sequence, h.Head)]), h.Visible), p.first)
		default:
			call.Measured(h.Sequence, h.Head, scores[slot].LSE)
			pattern.VerticalSlash{Columns: p.first, Slashes: p.second, Forced: forced, ByToken: byToken}.Keep(h, scores[slot])
		}
		h.KeepColumn(0)
		h.KeepSlash(0)
		return nil
	})
}
