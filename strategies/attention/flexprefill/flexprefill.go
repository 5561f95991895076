// Package flexprefill keeps, per head, the blocks whose estimated mass reaches
// gamma (FlexPrefill, arXiv 2502.20766). The last block of queries stands for
// all: a head whose block means predict where it looks chooses tile by tile
// (query-aware), any other keeps key columns and diagonals (vertical-slash).
package flexprefill

import (
	"context"
	"fmt"
	"sync"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "flexprefill",
		Summary: "per head the columns and diagonals, or the tiles, whose estimated mass reaches gamma",
		Paper:   "arXiv:2502.20766",
		Parameters: kernel.WithCoverage([]core.Parameter{
			kernel.Gamma("estimated attention mass to keep; .95 for Llama and GLM, .9 for Yi and Qwen in the paper"),
			{Name: "tau", Type: core.Float, Default: 0.1, Min: core.Bound(0), Max: core.Bound(1), PerHead: true, Doc: "Jensen-Shannon distance below which a head is query-aware"},
			{Name: "min_budget", Type: core.Int, Default: int64(512), Unit: "tokens", Min: core.Bound(0), Optional: true, Doc: "fewest columns and diagonals to keep; no longer prompts are dense; unset: one block"},
			{Name: "max_budget", Type: core.Int, Unit: "tokens", Min: core.Bound(1), Doc: "most columns and diagonals to keep; unset: no limit"},
			kernel.TileSide(),
			kernel.Segment(),
			{Name: "gqa_interleave", Type: core.Bool, Default: false, Doc: "query head h reads kv head h mod kv_heads, rather than h / group"},
			{Name: "rule", Type: core.String, Default: "fixed", Choices: []string{"released", "fixed", "paper"}, Doc: "how mass becomes blocks: as the released code, that with its faults mended, or by token as in the paper"},
		}),
		Notes: []string{
			"released: budgets count 128 tokens a block whatever block_size is, diagonals start at the end of a ragged prompt, and a zero probability makes a head vertical-slash.",
			"fixed: as released, with budgets in blocks of block_size, diagonals cut at multiples of it, and 0 log 0 = 0.",
			"paper: the fewest columns and diagonals, by token, whose mass reaches gamma, within the budgets; query-aware heads keep the tile that crosses gamma and no columns or diagonals beside it.",
			"Ties: the earlier column, the nearer diagonal, the earlier tile.",
			"Chunks: the last queries of each chunk choose for that chunk. When they are at least block_size, vertical-slash heads of a prompt's last chunk keep exactly the tiles of the one-shot call; other chunks promise neither the same nor a superset.",
			"Block means are scored at the position plan's band of their middles.",
			kernel.SegmentNote,
			"cuda: chosen on the device with block_size 128 when the queries are the last of the keys and at least 128; on the host otherwise, and with a segment.",
		},
	}, selectBlocks, selectOnDevice)
}

// settings are the parameters in blocks.
type settings struct {
	rule       string
	block      int
	minBlocks  int
	maxBlocks  int
	denseBelow int // prompts of at most so many tokens are dense
}

func read(call *kernel.Call) (settings, error) {
	block, err := call.BlockSize()
	if err != nil {
		return settings{}, err
	}
	s := settings{rule: call.Params.Text("rule"), block: block, maxBlocks: call.Longest()}
	s.minBlocks = max(1, ceilDiv(call.Params.Int("min_budget"), block))
	if call.Params.IsSet("max_budget") {
		s.maxBlocks = ceilDiv(call.Params.Int("max_budget"), block)
	}
	s.denseBelow = max(2, s.minBlocks) * block
	return s, nil
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	s, err := read(call)
	if err != nil {
		return nil, err
	}
	if !call.Request.Causal {
		return call.Dense("dense", "flexprefill selects for causal attention only"), nil
	}
	reason := fmt.Sprintf("prompts of at most %d tokens gain nothing", s.denseBelow)
	if call.Longest() <= s.denseBelow {
		return call.Dense("dense", reason), nil
	}
	scores, err := call.Session.Representative(ctx, s.block)
	if err != nil {
		return nil, err
	}
	keys, err := call.Session.Pool(ctx, false, s.block, 1)
	if err != nil {
		return nil, err
	}
	// Mean queries are for query-aware heads, which there may be none of.
	queries := sync.OnceValues(func() ([]hardware.Pooled, error) { return call.Session.Pool(ctx, true, s.block, 1) })
	return call.Choose(ctx, s.block, func(h *kernel.Head) error {
		sequence := &call.Problem.Sequences[h.Sequence]
		if sequence.Key[0].Rows <= s.denseBelow {
			h.Dense("dense", reason)
			return nil
		}
		slot := call.Slot(h.Sequence, h.Head)
		call.Measured(h.Sequence, h.Head, scores[slot].LSE)
		return head{Head: h, settings: s, call: call,
			gamma: call.Params.FloatAt("gamma", h.Head), tau: call.Params.FloatAt("tau", h.Head),
			query: sequence.Query[h.Head], offset: sequence.Offset, scores: scores[slot],
			queries: func() (kernel.Means, error) {
				all, err := queries()
				if err != nil {
					return kernel.Means{}, err
				}
				return call.QueryMeans(h.Sequence, s.block, all[slot]), nil
			},
			keys: call.KeyMeans(h.Sequence, s.block, keys[call.KeySlot(h.Sequence, h.Head)]),
		}.choose()
	})
}

// head is what one head is chosen from.
type head struct {
	*kernel.Head
	settings
	call       *kernel.Call
	gamma, tau float64
	query      hardware.Matrix
	offset     int // position of its row 0
	scores     hardware.RepresentativeScores
	queries    func() (kernel.Means, error)
	keys       kernel.Means
}

func (h head) choose() error {
	distance := h.distance()
	h.Report.JSDistance = kernel.Number(distance)
	queryAware := distance < h.tau
	h.Report.Pattern = "vertical_slash"
	if queryAware {
		h.Report.Pattern = "query_aware"
		if err := h.keepQueryAware(); err != nil {
			return err
		}
	}
	if h.rule == "paper" {
		if !queryAware {
			h.keepByToken()
		}
		h.KeepColumn(0)
		h.KeepSlash(0)
		return nil
	}
	columns, slashes := h.minBlocks, h.minBlocks
	if !queryAware {
		columns, slashes = h.budget(h.scores.Columns), h.budget(h.scores.Slashes)
	}
	h.keepColumnsAndSlashes(columns, slashes)
	return nil
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
