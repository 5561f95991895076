// Package streaming keeps the first tokens and the nearest ones (StreamingLLM's
// A shape, arXiv 2309.17453), and may attend densely at the end of the prompt
// (the tri shape of arXiv 2412.10319).
package streaming

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/pattern"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "streaming",
		Summary: "the first tokens and the nearest ones, and optionally dense last queries",
		Paper:   "arXiv:2309.17453",
		Parameters: kernel.WithCoverage([]core.Parameter{
			{Name: "sink", Type: core.Int, Default: int64(128), Unit: "tokens", Min: core.Bound(0), Doc: "tokens at the start that every query sees"},
			{Name: "recent", Type: core.Int, Default: int64(1024), Unit: "tokens", Min: core.Bound(1), Doc: "nearest tokens that a query sees"},
			{Name: "last", Type: core.Int, Default: int64(0), Unit: "tokens", Min: core.Bound(0), Doc: "queries at the end of the prompt that see everything"},
			kernel.TileSide(),
		}),
		Capabilities: core.Capabilities{ChunkRule: "superset"},
		Notes: []string{
			"Kept by whole blocks: each block that the token rule touches. For a window exact to the token use the window of the call.",
			"In a chunk the last queries are the chunk's own, so chunks keep a superset; with last = 0 they keep the same.",
			"cuda: chosen on the device with block_size 128 and causality, on the host otherwise.",
		},
	}, selectBlocks, selectOnDevice)
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	sink, recent, last := call.Params.Int("sink"), call.Params.Int("recent"), call.Params.Int("last")
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		h.Report.Pattern = "streaming"
		sequence := &call.Problem.Sequences[h.Sequence]
		pattern.Streaming(h, sequence.Offset+sequence.Query[h.Head].Rows, sink, recent, last)
		return nil
	})
}
