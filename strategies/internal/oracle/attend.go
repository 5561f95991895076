package oracle

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

func (s *session) Attend(ctx context.Context, masks []hardware.Blocks) error {
	return s.each(ctx, func(sequence, head int) {
		q := &s.sequences[sequence]
		extra := math.Inf(-1)
		if s.problem.Sinks != nil {
			extra = float64(s.problem.Sinks[head])
		}
		var blocks *hardware.Blocks
		if masks != nil {
			blocks = &masks[s.slot(sequence, head)]
		}
		for i := range q.Query[head].Rows {
			lse := s.attendRow(q, head, i, blocks, extra)
			if q.LSE != nil {
				q.LSE[head][i] = float32(lse)
			}
		}
	})
}

// slot is the index of a head among the heads of all sequences.
func (s *session) slot(sequence, head int) int {
	for i := range sequence {
		head += len(s.sequences[i].Query)
	}
	return head
}

func (s *session) attendRow(q *sequence, head, i int, blocks *hardware.Blocks, extra float64) float64 {
	kv := head * len(q.Key) / len(q.Query)
	var keys []int
	for j := range q.Key[kv].Rows {
		if s.visible(q, i, j) && (blocks == nil || keeps(blocks, q.Offset, i, j)) {
			keys = append(keys, j)
		}
	}
	out := make([]float64, q.Output[head].Cols)
	if len(keys) == 0 {
		dtype.PutRow(q.Output[head], i, out)
		return math.Inf(-1)
	}
	weights := make([]float64, len(keys))
	for n, j := range keys {
		weights[n] = s.score(q, head, i, j)
	}
	lse := softmax(weights, extra)
	for n, j := range keys {
		for c, v := range q.value[kv][j] {
			out[c] += weights[n] * v
		}
	}
	dtype.PutRow(q.Output[head], i, out)
	return lse
}

func keeps(b *hardware.Blocks, offset, i, j int) bool {
	row := (offset+i)/b.Size - offset/b.Size
	for _, column := range b.Columns[b.RowPtr[row]:b.RowPtr[row+1]] {
		if int(column) == j/b.Size {
			return true
		}
	}
	return false
}
