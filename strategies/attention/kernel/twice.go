package kernel

import (
	"context"
	"math"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
	"github.com/trivium-ml/trivium/strategies/internal/parallel"
)

// countTwice lets the pairs at the distance that a plan names join the softmax
// a second time, at their true positions, at which query and key arrive. A row
// has one such key, so this is one score and one weighted sum for each row, by
// its LSE, after the kernel. It does nothing for a single query.
func (c *Call) countTwice(ctx context.Context, masks []hardware.Blocks) error {
	plan := c.Request.Position
	if plan == nil || plan.Twice == 0 || c.Request.Window > 0 && plan.Twice >= c.Request.Window {
		return nil
	}
	if device := c.Request.Query.Device(); device != tensor.CPU {
		return core.Errorf(core.ErrUnsupported, "pairs that count twice, on %s", device).WithHint(`compat="paper" counts each pair once, on every device`)
	}
	slots := len(c.Problem.Sequences) * c.Heads
	return parallel.Each(ctx, c.Threads(), slots, func(slot int) error {
		var mask *hardware.Blocks
		if masks != nil {
			mask = &masks[slot]
		}
		c.repeatPairs(slot/c.Heads, slot%c.Heads, int(plan.Twice), mask)
		return nil
	})
}

func (c *Call) repeatPairs(sequence, head, distance int, mask *hardware.Blocks) {
	s := &c.Problem.Sequences[sequence]
	if s.Query[head].Rows < 2 {
		return
	}
	kv := head * len(s.Key) / len(s.Query)
	scale := c.Problem.Scale * c.Request.Position.AttentionScale * c.Request.Position.AttentionScale
	query, key := make([]float64, s.Query[head].Cols), make([]float64, s.Query[head].Cols)
	out, value := make([]float64, s.Output[head].Cols), make([]float64, s.Output[head].Cols)
	for row := range s.Query[head].Rows {
		n := s.Offset + row - distance
		if n < 0 || n >= s.Key[kv].Rows || !keeps(mask, s.Offset, row, n) {
			continue
		}
		dtype.Row(query, s.Query[head], row)
		dtype.Row(key, s.Key[kv], n)
		score := 0.0
		for i := range query {
			score += query[i] * key[i]
		}
		score *= scale
		if softcap := c.Problem.Softcap; softcap > 0 {
			score = softcap * math.Tanh(score/softcap)
		}
		before := float64(s.LSE[head][row])
		after := max(before, score) + math.Log1p(math.Exp(-math.Abs(before-score)))
		dtype.Row(out, s.Output[head], row)
		dtype.Row(value, s.Value[kv], n)
		for i := range out {
			out[i] = out[i]*math.Exp(before-after) + value[i]*math.Exp(score-after)
		}
		dtype.PutRow(s.Output[head], row, out)
		s.LSE[head][row] = float32(after)
	}
}

// keeps says whether a mask, nil for everything, keeps key n for a query row.
func keeps(mask *hardware.Blocks, offset, row, n int) bool {
	if mask == nil {
		return true
	}
	block := (offset+row)/mask.Size - offset/mask.Size
	_, found := slices.BinarySearch(mask.Columns[mask.RowPtr[block]:mask.RowPtr[block+1]], int32(n/mask.Size))
	return found
}
