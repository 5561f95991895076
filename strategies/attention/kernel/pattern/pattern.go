// Package pattern has the fixed shapes that several strategies keep.
package pattern

import (
	"math"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
)

// Streaming keeps the blocks that hold the first sink tokens, or one of the
// recent tokens before a query of the block. end is the position after the last
// query; the last queries before it see everything.
func Streaming(h *kernel.Head, end, sink, recent, last int) {
	size := h.BlockSize
	for row := range h.QueryBlocks {
		first := h.Diagonal(row) * size // the position of the block's first query
		if min(first+size, end) > end-last {
			h.KeepRow(row)
			continue
		}
		h.KeepRange(row, 0, (sink+size-1)/size)
		h.KeepRange(row, max(0, first-recent+1)/size, (first+size+recent-2)/size+1)
	}
}

// Granularity is the parameter for VerticalSlash.ByToken.
func Granularity() core.Parameter {
	return core.Parameter{Name: "granularity", Type: core.String, Default: "block", Choices: []string{"block", "token"},
		Doc: "block: budgets buy whole blocks; token: single columns and diagonals, with every tile they touch"}
}

// GranularityNote is what it makes of the paper's rule.
const GranularityNote = "The paper gathers single columns; this kernel attends to tiles, so granularity token keeps a superset of the paper's choice."

// VerticalSlash is how many tokens' worth of columns and diagonals to keep.
type VerticalSlash struct {
	Columns, Slashes int
	Forced           int  // the first columns and nearest diagonals, kept in any case
	ByToken          bool // single columns and diagonals with every tile they touch, rather than whole blocks
}

// Keep keeps the columns and diagonals that the last queries look at most.
func (p VerticalSlash) Keep(h *kernel.Head, scores hardware.RepresentativeScores) {
	if p.ByToken {
		for _, j := range heaviestTokens(scores.Columns, p.Columns, p.Forced) {
			h.KeepColumn(j / h.BlockSize)
		}
		for _, o := range heaviestTokens(scores.Slashes, p.Slashes, p.Forced) {
			h.KeepDiagonal(o)
		}
		return
	}
	for _, j := range mass.Heaviest(mass.Blocks(scores.Columns, h.BlockSize, h.KeyBlocks), blocks(p.Columns, h)) {
		h.KeepColumn(j)
	}
	for _, o := range mass.Heaviest(mass.Blocks(scores.Slashes, h.BlockSize, h.KeyBlocks), blocks(p.Slashes, h)) {
		h.KeepSlash(o)
	}
}

func blocks(tokens int, h *kernel.Head) int { return (tokens + h.BlockSize - 1) / h.BlockSize }

func heaviestTokens(values []float32, count, forced int) []int {
	raised := slices.Clone(values)
	for i := range min(forced, len(raised)) {
		raised[i] = math.MaxFloat32
	}
	return mass.Largest(raised, min(max(count, forced), len(raised)))
}

// TopBlocks keeps, of each query block, the count key blocks with the highest
// score of block means, and the diagonal.
func TopBlocks(h *kernel.Head, similarity hardware.BlockScores, count int) {
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		scores := make([]float64, high-low)
		for i := range scores {
			scores[i] = float64(similarity.Row(row)[low+i])
		}
		for _, i := range mass.Order(scores)[:min(count, high-low)] {
			h.Keep(row, low+i)
		}
		h.Keep(row, h.Diagonal(row))
	}
}
