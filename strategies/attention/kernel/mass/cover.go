// Package mass picks what is heaviest: tokens, blocks of tokens, tiles.
package mass

import "math"

// Cover counts how many of the largest values can be added up without the sum
// exceeding target. Values are not negative.
func Cover(values []float32, target float64) int {
	cut, count, sum := descend(values, func(_ int, sum float64) bool { return !(sum > target) })
	for cut > 0 && sum+float64(cut) <= target {
		count, sum = count+1, sum+float64(cut)
	}
	return count
}

// Largest finds the count largest values; of equals the lower index. The
// indices rise.
func Largest(values []float32, count int) []int {
	cut, above, _ := descend(values, func(n int, _ float64) bool { return n <= count })
	equal := count - above
	chosen := make([]int, 0, count)
	for i, v := range values {
		if v == cut && equal > 0 {
			equal--
			chosen = append(chosen, i)
		} else if v > cut {
			chosen = append(chosen, i)
		}
	}
	return chosen
}

// descend takes values from the largest down for as long as their count and
// sum fit. It gives the value that does not fit any more as a whole, with all
// its equals, and the count and sum of those above it; -1 when all fit. It
// walks histograms of the values' bits, so that nothing is sorted.
func descend(values []float32, fits func(count int, sum float64) bool) (cut float32, count int, sum float64) {
	var prefix uint32
	known := 32 // bits from here up are those of prefix
	room := make([]bucket, 1<<12)
	for _, shift := range [...]int{20, 8, 0} {
		buckets := room[:1<<(known-shift)]
		fill(buckets, values, shift)
		at := len(buckets) - 1
		for at >= 0 && fits(count+buckets[at].count, sum+buckets[at].sum) {
			count, sum = count+buckets[at].count, sum+buckets[at].sum
			for at--; at >= 0 && buckets[at].count == 0; at-- {
			}
		}
		if at < 0 {
			return -1, count, sum
		}
		prefix, known = prefix|uint32(at)<<shift, shift
		values = beginning(make([]float32, 0, buckets[at].count), values, prefix, known)
	}
	return math.Float32frombits(prefix), count, sum
}

// bucket is the values that share some bits.
type bucket struct {
	sum   float64
	count int
}

// fill counts and sums the values by their bits from shift on, which number the
// buckets.
func fill(buckets []bucket, values []float32, shift int) {
	clear(buckets)
	mask := uint32(len(buckets) - 1)
	for _, v := range values {
		b := &buckets[math.Float32bits(v)>>shift&mask]
		b.count++
		b.sum += float64(v)
	}
}

// beginning appends the values whose bits from known on are those of prefix: few,
// so that the next bits are looked up fast.
func beginning(to, values []float32, prefix uint32, known int) []float32 {
	for _, v := range values {
		if math.Float32bits(v)>>known == prefix>>known {
			to = append(to, v)
		}
	}
	return to
}
