package merge

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// thresholds finds, for each of lists lists of values over a whole tensor, the
// value at a rank from the largest: counts[l] values are at least as large,
// more when there are equals. It walks histograms of the values' bits, three
// passes over the tensor, and keeps nothing but the histograms. Values are not
// negative.
func thresholds(ctx context.Context, t *tile.Tensor, counts []int64, value func(v *tile.Values, list, i int) float32) ([]float32, error) {
	walks := make([]walk, len(counts))
	for l := range walks {
		walks[l] = walk{left: counts[l], known: 32}
	}
	for _, shift := range [...]int{20, 8, 0} {
		parts := make([][][]int64, t.Tiles())
		err := t.Scan(ctx, func(v *tile.Values) {
			part := make([][]int64, len(walks))
			for l := range walks {
				part[l] = walks[l].histogram(v, shift, func(i int) float32 { return value(v, l, i) })
			}
			parts[v.Tile] = part
		})
		if err != nil {
			return nil, err
		}
		for l := range walks {
			walks[l].descend(shift, func(bucket int) (n int64) {
				for _, part := range parts {
					n += part[l][bucket]
				}
				return n
			})
		}
	}
	found := make([]float32, len(walks))
	for l, count := range counts {
		found[l] = math.Float32frombits(walks[l].prefix)
		if count <= 0 {
			found[l] = float32(math.Inf(1))
		} else if count >= t.Len {
			found[l] = 0
		}
	}
	return found, nil
}

// walk is the search for one rank.
type walk struct {
	prefix uint32 // bits of the value that are known
	known  int    // they are the bits from here up
	left   int64  // rank among the values with that prefix
}

func (w *walk) histogram(v *tile.Values, shift int, value func(i int) float32) []int64 {
	counts := make([]int64, 1<<(w.known-shift))
	for i := range v.Len() {
		bits := math.Float32bits(value(i))
		if uint64(bits)>>w.known == uint64(w.prefix)>>w.known {
			counts[bits>>shift&uint32(len(counts)-1)]++
		}
	}
	return counts
}

func (w *walk) descend(shift int, count func(bucket int) int64) {
	for bucket := 1<<(w.known-shift) - 1; bucket >= 0; bucket-- {
		n := count(bucket)
		if w.left <= n {
			w.prefix |= uint32(bucket) << shift
			break
		}
		w.left -= n
	}
	w.known = shift
}

func abs32(x float64) float32 { return float32(math.Abs(x)) }
