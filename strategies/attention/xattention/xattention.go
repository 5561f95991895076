// Package xattention scores tiles by sums along antidiagonals: of each stride x
// stride square of pairs one antidiagonal counts, which meets every column and
// every diagonal of it (XAttention, arXiv 2503.16428).
package xattention

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "xattention",
		Summary: "per query block the tiles whose antidiagonal scores reach a threshold",
		Paper:   "arXiv:2503.16428",
		Parameters: kernel.WithCoverage([]core.Parameter{
			{Name: "threshold", Type: core.Float, Default: 0.9, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), PerHead: true, Doc: "share of a query block's score to keep"},
			{Name: "stride", Type: core.Int, Default: int64(16), Unit: "tokens", Min: core.Bound(2), Max: core.Bound(64), Doc: "side of the squares; 8 or 16 in the paper; it divides block_size"},
			{Name: "norm", Type: core.Float, Default: 1.0, Min: core.Bound(0), OpenMin: true, Doc: "divisor of the scores"},
			{Name: "block_size", Type: core.Int, Default: int64(128), Unit: "tokens", Min: core.Bound(16), Max: core.Bound(1024), Doc: "side of a tile, a multiple of 16"},
		}),
		Capabilities: core.Capabilities{ChunkRule: "same"},
		Notes: []string{
			"A query block keeps the same tiles in any chunk that holds it whole; where a chunk cuts it, each part is judged by the rows it has.",
			"Column 0 and the diagonal are kept and count first towards the threshold, as in the released code.",
			"Scores are those of true positions, without the bands of a position plan.",
		},
	}, selectBlocks)
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	stride := call.Params.Int("stride")
	if size%stride != 0 {
		return nil, core.Invalid("attention.xattention", "stride %d, block_size %d: want a stride that divides it", stride, size)
	}
	if !call.Request.Causal {
		return call.Dense("dense", "xattention selects for causal attention only"), nil
	}
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		h.Report.Pattern = "antidiagonal"
		sequence := &call.Problem.Sequences[h.Sequence]
		s := squares{Head: h, stride: stride, offset: sequence.Offset, query: sequence.Query[h.Head],
			keys:  keySquares(sequence.Key[h.Head*len(sequence.Key)/call.Heads], stride),
			scale: call.Request.Scale / (float64(stride) * call.Params.Float("norm"))}
		for row := range h.QueryBlocks {
			keepRow(h, row, s.scores(row), call.Params.FloatAt("threshold", h.Head))
		}
		return ctx.Err()
	})
}

// squares are the rows of one head taken stride at a time.
type squares struct {
	*kernel.Head
	stride, offset int
	query          hardware.Matrix
	keys           [][]float32
	scale          float64
}

// keySquares joins each stride keys, which count from the sequence's first, to
// one row. A ragged last row is filled up with zeros.
func keySquares(m hardware.Matrix, stride int) [][]float32 {
	rows := make([][]float32, (m.Rows+stride-1)/stride)
	for c := range rows {
		rows[c] = make([]float32, stride*m.Cols)
		for t := range min(stride, m.Rows-c*stride) {
			dtype.Row(rows[c][t*m.Cols:(t+1)*m.Cols], m, c*stride+t)
		}
	}
	return rows
}

// querySquare joins the queries at positions [r*stride, (r+1)*stride) in
// reverse, so that its product with a key square is one antidiagonal. It says
// whether there are any.
func (s squares) querySquare(r int, joined []float32) bool {
	clear(joined)
	found := false
	for t := range s.stride {
		row := r*s.stride + s.stride - 1 - t - s.offset
		if row >= 0 && row < s.query.Rows {
			dtype.Row(joined[t*s.query.Cols:(t+1)*s.query.Cols], s.query, row)
			found = true
		}
	}
	return found
}

// scores is the share of a query block's attention, by squares, that each key
// block has.
func (s squares) scores(row int) []float64 {
	perBlock := s.BlockSize / s.stride
	scores := make([]float64, s.KeyBlocks)
	joined := make([]float32, s.stride*s.query.Cols)
	for r := s.Diagonal(row) * perBlock; r < (s.Diagonal(row)+1)*perBlock; r++ {
		if !s.querySquare(r, joined) {
			continue
		}
		low, _ := s.Visible(row)
		weights := make([]float64, min(r+1, len(s.keys)))
		for c := range weights {
			weights[c] = math.Inf(-1)
			if c/perBlock >= low {
				weights[c] = s.scale * mass.Dot(joined, s.keys[c])
			}
		}
		mass.Softmax(weights)
		for c, w := range weights {
			scores[c/perBlock] += w
		}
	}
	return scores
}

// keepRow keeps column 0, the diagonal, and the heaviest others until their sum
// reaches the threshold.
func keepRow(h *kernel.Head, row int, scores []float64, threshold float64) {
	wanted := 0.0
	for _, score := range scores {
		wanted += threshold * score
	}
	for _, forced := range []int{0, h.Diagonal(row)} {
		if forced < len(scores) && !h.Kept(row, forced) {
			h.Keep(row, forced)
			wanted -= scores[forced]
		}
	}
	for _, j := range mass.Order(scores) {
		if wanted <= 0 {
			return
		}
		if !h.Kept(row, j) {
			h.Keep(row, j)
			wanted -= scores[j]
		}
	}
}
