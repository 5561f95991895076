package oracle

import (
	"context"
	"math"
	"slices"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
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

func (s *session) AddMeans(ctx context.Context, masks []hardware.Blocks) error {
	return s.each(ctx, func(sequence, head int) {
		q := &s.sequences[sequence]
		kv := head * len(q.Key) / len(q.Query)
		query, mask := rows(q.Query)[head], &masks[s.slot(sequence, head)]
		keys, values := pool(rows(q.Key)[kv], 0, mask.Size, q.Key[kv].Cols), pool(q.value[kv], 0, mask.Size, q.Value[kv].Cols)
		for i, row := range query {
			s.addMeans(q, head, i, row, mask, keys, values)
		}
	})
}

// addMeans adds to row i of a head the blocks that it sees whole and that the
// mask drops.
func (s *session) addMeans(q *sequence, head, i int, query []float64, mask *hardware.Blocks, keys, values hardware.Pooled) {
	lse := float64(q.LSE[head][i])
	if math.IsInf(lse, -1) {
		return
	}
	position, first := (q.Offset+i)/mask.Size, q.Offset/mask.Size
	last := min((position+1)*mask.Size, q.Offset+q.Query[head].Rows) - 1 // query of the block
	kept := mask.Columns[mask.RowPtr[position-first]:mask.RowPtr[position-first+1]]
	out := make([]float64, values.Dim)
	dtype.Row(out, q.Output[head], i)
	weights, parts := []float64{lse}, [][]float64{out}
	for j := range min(position, keys.Blocks) {
		if slices.Contains(kept, int32(j)) || s.problem.Window > 0 && int64(last-j*mask.Size) >= s.problem.Window {
			continue
		}
		x := 0.0
		for c, y := range query {
			x += y * float64(keys.Data[j*keys.Dim+c])
		}
		x *= s.problem.Scale
		if s.problem.Softcap > 0 {
			x = s.problem.Softcap * math.Tanh(x/s.problem.Softcap)
		}
		part := make([]float64, values.Dim)
		for c := range part {
			part[c] = float64(values.Data[j*values.Dim+c])
		}
		weights, parts = append(weights, x+math.Log(float64(mask.Size))), append(parts, part)
	}
	q.LSE[head][i] = float32(softmax(weights, math.Inf(-1)))
	sum := make([]float64, values.Dim)
	for n, part := range parts {
		for c, y := range part {
			sum[c] += weights[n] * y
		}
	}
	dtype.PutRow(q.Output[head], i, sum)
}

// Precision is highest: everything is float64.
func (s *session) Precision() hardware.Precision { return hardware.Highest }
