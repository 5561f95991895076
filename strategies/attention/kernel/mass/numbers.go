package mass

import (
	"cmp"
	"math"
	"slices"
)

// Blocks adds up values over blocks, of which there are count.
func Blocks(values []float32, block, count int) []float64 {
	sums := make([]float64, count)
	for i, v := range values {
		if i/block >= count {
			break
		}
		sums[i/block] += float64(v)
	}
	return sums
}

// Order is the indices of values from the largest down; of equals the lower
// first.
func Order[F float32 | float64](values []F) []int {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(values[b], values[a]) })
	return order
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

// Dot multiplies a with the first len(a) elements of b, in four independent
// sums.
func Dot(a, b []float32) float64 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return float64(s0+s1) + float64(s2+s3)
}
