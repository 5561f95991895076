// Package probe keeps a promise: in each head, the kept softmax mass, averaged
// over rows, is at least gamma. Exact mass of a few random query rows ranks the
// tiles, and rows that had no part in a rank decide where to stop. This
// strategy is Trivium's own; kernel.Promise has the rule.
package probe

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// denseBelow is the length at which too few rows are left to be sure of
// anything.
const denseBelow = 1024

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "probe",
		Summary: "the fewest tiles whose coverage is at least gamma by a lower confidence bound",
		Parameters: []core.Parameter{
			kernel.Gamma("attention mass each head keeps, as a mean over rows"),
			kernel.TileSide(),
			kernel.Segment(),
		},
		Notes: []string{
			"Below 16384 keys: four random rows of each query block, each checked against the ranks that the others made; bound of 3 standard errors.",
			"From 16384 keys: a random row of every fourth block ranks, 256 others check with 3.5 standard errors, 512 with 3 from 32768 keys on; block means alone rank where that keeps less.",
			"With bound proven, 256 uniform rows check, 512 from 16384 keys, and gamma is missed with probability delta at most, in each head.",
			"Prompts of at most 1024 tokens are dense.",
			"Chunks: each chunk keeps the promise for its own rows, and so for the prompt; its tiles need not be those of a one-shot call.",
			kernel.SegmentNote,
		},
	}, selectBlocks, kernel.ByProbes)
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	const reason = "prompts of at most 1024 tokens gain nothing"
	if call.Longest() <= denseBelow {
		return call.Dense("dense", reason), nil
	}
	return call.Promise(ctx, size, func(h *kernel.Head) {
		if call.Problem.Sequences[h.Sequence].Key[0].Rows <= denseBelow {
			h.Dense("dense", reason)
			return
		}
		h.Report.Pattern = "probe"
		h.KeepColumn(0)
		h.KeepSlash(0)
	})
}
