package flexprefill

import "github.com/trivium-ml/trivium/strategies/attention/kernel/mass"

// releasedBlock is the block that the released code divides token counts by,
// whatever the block size is.
const releasedBlock = 128

// cover counts the largest values whose sum stays within gamma of whole. Gamma
// 1 is everything, whatever rounding makes of the sum.
func (h head) cover(values []float32, whole float64) int {
	if h.gamma >= 1 {
		return len(values)
	}
	return mass.Cover(values, h.gamma*whole)
}

// budget is how many blocks hold the tokens that are needed for gamma.
func (h head) budget(values []float32) int {
	block := h.block
	if h.rule == "released" {
		block = releasedBlock
	}
	count := h.cover(values, 1)
	return min(max((count+1)/block+1, h.minBlocks), h.maxBlocks)
}

// keepColumnsAndSlashes keeps the heaviest blocks of columns and of distances,
// the first and the nearest always among them.
func (h head) keepColumnsAndSlashes(columns, slashes int) {
	for _, j := range mass.Heaviest(mass.Blocks(h.scores.Columns, h.block, h.KeyBlocks), columns) {
		h.KeepColumn(j)
	}
	for _, o := range mass.Heaviest(h.slashSums(), slashes) {
		h.KeepSlash(o)
	}
}

// slashSums is the mass of distances [o*block, (o+1)*block) for each o. The
// released code cuts the blocks from the largest distance, which differs when
// the prompt is not a whole number of blocks.
func (h head) slashSums() []float64 {
	if h.rule != "released" {
		return mass.Blocks(h.scores.Slashes, h.block, h.KeyBlocks)
	}
	sums, n := make([]float64, h.KeyBlocks), len(h.scores.Slashes)
	for o, v := range h.scores.Slashes {
		sums[h.KeyBlocks-1-(n-1-o)/h.block] += float64(v)
	}
	return sums
}

// keepByToken keeps the fewest columns and the fewest distances, each a token
// wide, whose mass reaches gamma.
func (h head) keepByToken() {
	for _, j := range h.fewest(h.scores.Columns) {
		h.KeepColumn(j / h.block)
	}
	for _, o := range h.fewest(h.scores.Slashes) {
		h.KeepDiagonal(o)
	}
}

// fewest is the smallest set of tokens that reaches gamma, within the budgets.
func (h head) fewest(values []float32) []int {
	count := h.cover(values, 1)
	count = min(max(count+1, h.minBlocks*h.block), h.maxBlocks*h.block, len(values))
	return mass.Largest(values, count)
}
