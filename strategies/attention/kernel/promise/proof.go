package promise

import (
	"sort"

	"github.com/trivium-ml/trivium/strategies/attention/kernel/bound"
)

// Proof asks for a promise that is proven: it fails with probability Delta at
// most, over the draw of Head.Check. These are then uniform draws without
// replacement of Rows rows, in the order drawn, and independent of Head.Score.
type Proof struct {
	Rows  int
	Delta float64
}

// candidates are the ranks that Find chooses from by the checks' verdict on
// both, which divide Delta.
const candidates = 2

// prove finds the highest level of which the checks prove gamma. Tiles of one
// level are among those of the level below, so coverage falls with the level,
// and so does what a test is worth: those that pass are the first ones. The
// first level whose true coverage is below gamma depends on no check, and only
// if its test passes is the promise broken: one test in all may fail, of
// whichever level is chosen.
func (h *Head) prove(r ranks) *Result {
	best := &Result{Mean: 1, Lower: 1, Probes: len(h.Check), ranks: r}
	best.Stop = sort.Search(levels, func(level int) bool { return !h.proves(r, level+1) })
	if best.Stop > 0 {
		best.Mean = h.means(h.Check, func(int) ranks { return r })[best.Stop]
		best.Lower = h.Gamma // all that was tested
	}
	return best
}

// proves says whether the tiles of a level and above cover gamma, as a proof.
func (h *Head) proves(r ranks, level int) bool {
	test := bound.NewTest(h.Gamma, h.Proof.Rows, h.Proof.Delta/candidates)
	for _, p := range h.Check {
		levels, mass := h.row(p, r)
		sum := 0.0
		for j, l := range levels {
			if int(l) >= level {
				sum += float64(mass[j])
			}
		}
		if test.Add(min(sum, 1)) {
			return true
		}
	}
	return false
}
