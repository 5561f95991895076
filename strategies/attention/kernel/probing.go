package kernel

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/bound"
)

// probing is how coverage is measured on rows that are drawn for that alone.
type probing struct {
	seed  int64
	count int     // rows of each head
	delta float64 // that a proven bound does not hold; 0: the normal one
}

func probingOf(r *core.AttentionRequest) probing {
	p := probing{seed: r.Seed, count: r.ProbeRows}
	if r.Bound == core.BoundProven {
		p.delta = r.Delta
		if p.delta == 0 {
			p.delta = core.DefaultDelta
		}
	}
	return p
}

// check refuses a report of heads of which nothing is proven, for want of rows.
func (p probing) check(info core.Info, heads []core.HeadReport) error {
	if p.delta == 0 || p.count > 0 {
		return nil
	}
	for _, h := range heads {
		if h.Kept < h.Blocks && h.Bound != core.BoundProven {
			return core.Invalid(info.ID(), "bound %q, and no promise that is proven: want probe_rows", core.BoundProven).
				WithHint("probe_rows=256 proves .9 of a head that keeps about .93")
		}
	}
	return nil
}

// drawn is a head whose rows were drawn: its number in the call, how many rows
// it has, and how many heads the call has.
type drawn struct{ slot, rows, heads int }

// rows draws those of a head, rising. A proof needs rows that are independent of
// what chose the tiles, and uniform.
func (p probing) rows(slot, n int) []int32 {
	if p.delta == 0 {
		return StratifiedRows(p.seed, slot, n, p.count)
	}
	return uniformRows(freshSource(p.seed, slot, "rows"), n, p.count)
}

// report says of a head what its rows tell. kept is the share of mass kept in each.
func (p probing) report(h *core.HeadReport, kept []float64, d drawn) {
	if p.delta > 0 && h.Kept == h.Blocks {
		p.complete(h)
		return
	}
	mean, lower := meanAndBound(kept)
	h.Coverage, h.CoverageLower, h.ProbeRows, h.Bound = Number(mean), Number(lower), len(kept), core.BoundNormal
	if p.delta == 0 {
		return
	}
	// The bound is of values in the order they were drawn: any order that has
	// nothing to do with the rows.
	kept = slices.Clone(kept)
	rand.New(freshSource(p.seed, d.slot, "order")).Shuffle(len(kept), func(i, j int) { kept[i], kept[j] = kept[j], kept[i] })
	h.Bound, h.Delta = core.BoundProven, p.delta
	h.CoverageLower = Number(bound.Lower(kept, d.rows, p.delta))
	h.CoverageLowerAll = Number(bound.Lower(kept, d.rows, p.delta/float64(d.heads)))
}

// complete says that a head keeps everything, which needs no rows.
func (p probing) complete(h *core.HeadReport) {
	h.Coverage = core.Bound(1)
	if p.delta > 0 {
		h.CoverageLower, h.CoverageLowerAll, h.Bound, h.Delta = core.Bound(1), core.Bound(1), core.BoundProven, p.delta
	}
}

// freshSource is random numbers that no selector sees: theirs are of generators
// of another kind.
func freshSource(seed int64, slot int, purpose string) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], uint64(seed))
	binary.LittleEndian.PutUint64(key[8:], uint64(slot))
	copy(key[16:], purpose)
	return rand.NewChaCha8(key)
}

// uniformRows draws count of n rows, every set of them alike, rising; all rows
// when there are no more.
func uniformRows(source rand.Source, n, count int) []int32 {
	count = min(count, n)
	random, taken := rand.New(source), make(map[int32]bool, count)
	rows := make([]int32, 0, count)
	for last := n - count; last < n; last++ { // R. Floyd's: the set grows by one of the first last+1 rows
		row := int32(random.IntN(last + 1))
		if taken[row] {
			row = int32(last)
		}
		taken[row] = true
		rows = append(rows, row)
	}
	slices.Sort(rows)
	return rows
}
