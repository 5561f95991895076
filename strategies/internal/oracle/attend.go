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
	keys := s.keys(q, q.Key[kv].Rows, i, blocks)
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

// keys lists the keys that query row i attends to.
func (s *session) keys(q *sequence, n, i int, blocks *hardware.Blocks) []int {
	var keys []int
	add := func(first, end int) {
		for j := first; j < min(end, n); j++ {
			if s.visible(q, i, j) {
				keys = append(keys, j)
			}
		}
	}
	if blocks == nil {
		add(0, n)
		return keys
	}
	row := (q.Offset+i)/blocks.Size - q.Offset/blocks.Size
	for _, column := range blocks.Columns[blocks.RowPtr[row]:blocks.RowPtr[row+1]] {
		add(int(column)*blocks.Size, (int(column)+1)*blocks.Size)
	}
	return keys
}
