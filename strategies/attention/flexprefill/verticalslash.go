package flexprefill

import (
	"cmp"
	"slices"
)

// releasedBlock is the block that the released code divides token counts by,
// whatever the block size is.
const releasedBlock = 128

// budget is how many blocks hold the tokens that are needed for gamma.
func (h head) budget(mass []float32) int {
	block := h.block
	if h.rule == "released" {
		block = releasedBlock
	}
	count := cover(mass, h.gamma)
	return min(max((count+1)/block+1, h.minBlocks), h.maxBlocks)
}

// keepColumnsAndSlashes keeps the heaviest blocks of columns and of distances,
// the first and the nearest always among them.
func (h head) keepColumnsAndSlashes(columns, slashes int) {
	for _, j := range heaviest(blockSums(h.scores.Columns, h.block, h.KeyBlocks), columns) {
		h.KeepColumn(j)
	}
	for _, o := range heaviest(h.slashSums(), slashes) {
		h.KeepSlash(o)
	}
}

// slashSums is the mass of distances [o*block, (o+1)*block) for each o. The
// released code cuts the blocks from the largest distance, which differs when
// the prompt is not a whole number of blocks.
func (h head) slashSums() []float64 {
	if h.rule != "released" {
		return blockSums(h.scores.Slashes, h.block, h.KeyBlocks)
	}
	sums, n := make([]float64, h.KeyBlocks), len(h.scores.Slashes)
	for o, v := range h.scores.Slashes {
		sums[h.KeyBlocks-1-(n-1-o)/h.block] += float64(v)
	}
	return sums
}

// heaviest picks count of the blocks, block 0 first; of equals the lower.
func heaviest(sums []float64, count int) []int {
	order := make([]int, len(sums))
	for i := range order {
		order[i] = i
	}
	if len(order) > 1 {
		slices.SortStableFunc(order[1:], func(a, b int) int { return cmp.Compare(sums[b], sums[a]) })
	}
	return order[:min(count, len(order))]
}

// keepByToken keeps the fewest columns and the fewest distances, each a token
// wide, whose mass reaches gamma.
func (h head) keepByToken() {
	for _, j := range h.fewest(h.scores.Columns) {
		h.KeepColumn(j / h.block)
	}
	for _, o := range h.fewest(h.scores.Slashes) {
		h.KeepSlash(o / h.block)
		if o%h.block != 0 { // this diagonal crosses two tiles of each row
			h.KeepSlash(o/h.block + 1)
		}
	}
}

// fewest is the smallest set of tokens that reaches gamma, within the budgets.
func (h head) fewest(mass []float32) []int {
	count := cover(mass, h.gamma)
	count = min(max(count+1, h.minBlocks*h.block), h.maxBlocks*h.block, len(mass))
	return largest(mass, count)
}
