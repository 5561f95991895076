package oracle

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

func (s *session) blockScores(q *sequence, size int) hardware.BlockScores {
	b := hardware.BlockScores{KeyBlocks: (q.Key[0].Rows + size - 1) / size}
	if rows := q.Query[0].Rows; rows > 0 {
		b.QueryBlocks = (q.Offset+rows-1)/size - q.Offset/size + 1
	}
	b.Score = make([]float32, b.QueryBlocks*b.KeyBlocks)
	return b
}

func (s *session) SquareMass(ctx context.Context, stride, blockSize int, scale float64) ([]hardware.BlockScores, error) {
	out := make([]hardware.BlockScores, s.slot(len(s.sequences), 0))
	err := s.each(ctx, func(sequence, head int) {
		q := &s.sequences[sequence]
		b := s.blockScores(q, blockSize)
		query, key := rows(q.Query)[head], rows(q.Key)[head*len(q.Key)/len(q.Query)]
		perBlock := blockSize / stride
		for r := q.Offset / stride; r*stride < q.Offset+len(query); r++ {
			weights := make([]float64, min(r+1, (len(key)+stride-1)/stride))
			for c := range weights {
				weights[c] = math.Inf(-1)
				if nearest := int64((r-c)*stride - stride + 1); s.problem.Window == 0 || nearest < s.problem.Window {
					weights[c] = scale * antidiagonal(query, key, r*stride-q.Offset, c*stride, stride)
				}
			}
			softmax(weights, math.Inf(-1))
			for c, w := range weights {
				b.Row(r/perBlock - q.Offset/blockSize)[c/perBlock] += float32(w)
			}
		}
		out[s.slot(sequence, head)] = b
	})
	return out, err
}

// antidiagonal is the sum over the pairs of a square that lie on one; rows that
// are not there count as zero.
func antidiagonal(query, key [][]float64, row, column, stride int) float64 {
	sum := 0.0
	for t := range stride {
		i, j := row+stride-1-t, column+t
		if i >= 0 && i < len(query) && j < len(key) {
			sum += dot(query[i], key[j])
		}
	}
	return sum
}

func (s *session) MeanScores(ctx context.Context, blockSize int) ([]hardware.BlockScores, error) {
	out := make([]hardware.BlockScores, s.slot(len(s.sequences), 0))
	err := s.each(ctx, func(sequence, head int) {
		q := &s.sequences[sequence]
		b := s.blockScores(q, blockSize)
		kv := head * len(q.Key) / len(q.Query)
		query, means := rows(q.Query)[head], pool(rows(q.Key)[kv], 0, blockSize, q.Key[kv].Cols)
		for block := range b.QueryBlocks {
			s.meanScores(&b, query, means, q.Offset, q.Offset/blockSize+block, blockSize)
		}
		out[s.slot(sequence, head)] = b
	})
	return out, err
}

// meanScores fills in the row of the query block at position block.
func (s *session) meanScores(b *hardware.BlockScores, query [][]float64, means hardware.Pooled, offset, block, size int) {
	past, low := min(block, b.KeyBlocks), 0
	if s.problem.Window > 0 {
		low = max(0, block*size-int(s.problem.Window)+1) / size
	}
	var logits [][]float64 // [row][key block from low on]
	top := math.Inf(-1)
	for r := max(0, block*size-offset); r < min(len(query), (block+1)*size-offset); r++ {
		var row []float64
		for j := low; j < past; j++ {
			x := 0.0
			for c, q := range query[r] {
				x += q * float64(means.Data[j*means.Dim+c])
			}
			x *= s.problem.Scale
			if s.problem.Softcap > 0 {
				x = s.problem.Softcap * math.Tanh(x/s.problem.Softcap)
			}
			row, top = append(row, x), max(top, x)
		}
		logits = append(logits, row)
	}
	for j := low; j < past; j++ {
		sum := 0.0
		for _, row := range logits {
			sum += math.Exp(row[j-low] - top)
		}
		b.Row(block - offset/size)[j] = float32(sum)
	}
}
