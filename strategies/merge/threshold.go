package merge

import (
	"context"
	"math"
	"slices"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// thresholds finds, for each of lists lists of values over a whole tensor, the
// value at a rank from the largest: counts[l] values are at least as large,
// more when there are equals. It walks counts of the values' bits, three passes
// over the tensor, none where all or nothing is wanted, and keeps nothing but the
// counts. Values are not negative. count adds to the counts of the walks in one pass.
func thresholds(ctx context.Context, t *tile.Tensor, ranks []int64, count func(walks []hardware.Walk) error) ([]float32, error) {
	search := make([]walk, len(ranks))
	for l := range search {
		search[l] = walk{left: ranks[l], known: 32}
	}
	shifts := []int{20, 8, 0}
	if !slices.ContainsFunc(ranks, func(rank int64) bool { return rank > 0 && rank < t.Len }) {
		shifts = nil
	}
	for _, shift := range shifts {
		walks := make([]hardware.Walk, len(search))
		for l, w := range search {
			walks[l] = hardware.Walk{Source: l, Prefix: w.prefix, Known: w.known, Shift: shift, Counts: make([]int64, 1<<(w.known-shift))}
		}
		if err := count(walks); err != nil {
			return nil, err
		}
		for l := range search {
			search[l].descend(shift, walks[l].Counts)
		}
	}
	found := make([]float32, len(search))
	for l, rank := range ranks {
		found[l] = math.Float32frombits(search[l].prefix)
		if rank <= 0 {
			found[l] = float32(math.Inf(1))
		} else if rank >= t.Len {
			found[l] = 0
		}
	}
	return found, ctx.Err()
}

// magnitudes finds the ranks of each source's differences; several ranks of one
// source follow each other.
func magnitudes(ctx context.Context, t *tile.Tensor, ranks []int64) ([]float32, error) {
	each := len(ranks) / t.Sources
	return thresholds(ctx, t, ranks, func(walks []hardware.Walk) error {
		for l := range walks {
			walks[l].Source = l / each
		}
		return t.Magnitudes(ctx, walks)
	})
}

// walk is the search for one rank.
type walk struct {
	prefix uint32 // bits of the value that are known
	known  int    // they are the bits from here up
	left   int64  // rank among the values with that prefix
}

func (w *walk) descend(shift int, counts []int64) {
	for bucket := len(counts) - 1; bucket >= 0; bucket-- {
		if w.left <= counts[bucket] {
			w.prefix |= uint32(bucket) << shift
			break
		}
		w.left -= counts[bucket]
	}
	w.known = shift
}
