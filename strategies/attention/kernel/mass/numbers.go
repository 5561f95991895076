package mass

import (
	"cmp"
	"math"
	"slices"
)

// Blocks adds up values over blocks, of which there are count.
func Blocks(values []float32, block, count int) []float64 {
	sums := make([]float64, count)
	for b := range sums {
		part, sum := values[min(len(values), b*block):min(len(values), (b+1)*block)], [4]float64{} // which do not wait for each other
		for ; len(part) >= 4; part = part[4:] {
			sum[0], sum[1] = sum[0]+float64(part[0]), sum[1]+float64(part[1])
			sum[2], sum[3] = sum[2]+float64(part[2]), sum[3]+float64(part[3])
		}
		for _, v := range part {
			sum[0] += float64(v)
		}
		sums[b] = (sum[0] + sum[1]) + (sum[2] + sum[3])
	}
	return sums
}

// Order is the indices of values from the largest down; of equals the lower
// first.
func Order(values []float64) []int {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(values[b], values[a]) })
	return order
}

// Falling is the order of float32 values, several times as fast: with their
// indices they fit into numbers.
func Falling(values []float32) []int {
	keys := make([]uint64, len(values))
	for i, v := range values {
		keys[i] = uint64(rising(v))<<32 | uint64(^uint32(i))
	}
	slices.Sort(keys)
	order := make([]int, len(values))
	for i, k := range keys {
		order[len(order)-1-i] = int(^uint32(k))
	}
	return order
}

// rising is bits that compare as unsigned numbers as the values do, 0 for NaN.
func rising(v float32) uint32 {
	switch bits := math.Float32bits(v + 0); { // -0 + 0 is 0
	case v != v:
		return 0
	case bits>>31 == 1:
		return ^bits
	default:
		return bits | 1<<31
	}
}

// Heaviest picks count of the blocks, block 0 first and then by their sums; of
// equals the lower.
func Heaviest(sums []float64, count int) []int {
	raised := slices.Clone(sums)
	if len(raised) > 0 {
		raised[0] = math.Inf(1)
	}
	return Order(raised)[:min(count, len(raised))]
}

// Softmax turns logits into probabilities in place; -Inf becomes 0.
func Softmax(x []float64) {
	top, sum := math.Inf(-1), 0.0
	for _, v := range x {
		top = max(top, v)
	}
	for i, v := range x {
		x[i] = math.Exp(v - top)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}
