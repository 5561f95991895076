// Package promise finds, for one head, the fewest tiles whose coverage is at
// least gamma by a lower confidence bound. Exact softmax mass of a few random
// query rows, the probes, ranks the tiles; probes that did not rank a tile
// decide where to stop, since rows that made a score flatter it.
package promise

import (
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

// Tiles are the tiles of one head: which of them can be seen, and which are
// kept in any case.
type Tiles interface {
	Visible(row int) (low, high int)
	AppendRow(columns []int32, row int) []int32 // with the kept ones of a row
}

// Ranker makes levels of scores: a hardware.Backend.
type Ranker interface {
	Levels(t *hardware.TileLevels, level []uint8)
}

// Probe is a query row with its exact softmax mass by key block.
type Probe struct {
	Row  int // query block it lies in
	Mass []float32
}

// Head is what is known of one head.
type Head struct {
	Tiles
	Ranker
	QueryBlocks, KeyBlocks int
	Gamma                  float64
	Z                      float64   // standard errors that the bound lies below the mean
	Proof                  *Proof    // nil: the bound lies Z standard errors below the mean
	Score                  []Probe   // rank the tiles; by query block
	Check                  []Probe   // decide; nil: each scoring probe decides over the ranks that the others made
	Similarity             []float32 // [query blocks, key blocks] mean queries times mean keys, scaled
	Room                   *Room     // nil: the head's own
}

// Result is the tiles to keep: Keep tells of each, and what is promised of them.
type Result struct {
	Mean, Lower float64 // coverage over the deciding probes, and its bound
	Probes      int
	Stop        int
	ranks       ranks
}

// Row is the levels of a query block's tiles; those of at least Stop belong to the
// result, as forced ones do.
func (r *Result) Row(row int) []uint8 { return r.ranks.level[row*r.ranks.columns:][:r.ranks.columns] }

// Find applies the rule. A head in which no threshold holds the promise keeps
// everything.
func (h *Head) Find() *Result {
	h.room().numbers.empty()
	h.room().levels.empty()
	if h.Check == nil {
		return h.crossCheck()
	}
	probed := h.separate(h.rank(h.Score, make([]int32, len(h.Score)), 1)[0])
	pooled := h.separate(h.rank(nil, nil, 0)[0])
	if h.cost(pooled) < h.cost(probed) {
		return pooled
	}
	return probed
}

// cost is the number of tiles that a result keeps, the forced ones among them.
func (h *Head) cost(r *Result) int {
	kept := 0
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		for _, level := range r.Row(row)[low:high] {
			one := 0
			if int(level) >= r.Stop {
				one = 1
			}
			kept += one
		}
	}
	return kept
}

// separate stops by probes that had no part in the ranks.
func (h *Head) separate(r ranks) *Result {
	if h.Proof != nil {
		return h.prove(r)
	}
	return h.stop(h.Check, func(int) ranks { return r }, r)
}

// folds is how many parts the scoring probes are left out in.
const folds = hardware.LevelParts

// crossCheck leaves out a quarter of the probes at a time, one of each query
// block, and judges it by the ranks of the rest.
func (h *Head) crossCheck() *Result {
	left := make([]int32, len(h.Score)) // the part that each probe is of
	number, block := 0, -1
	for i, p := range h.Score {
		if p.Row != block {
			number, block = 0, p.Row
		}
		left[i] = int32((number + p.Row) % folds)
		number++
	}
	rest := h.rank(h.Score, left, folds)
	return h.stop(h.Score, func(i int) ranks { return rest[left[i]] }, rest[folds])
}

// curve has a number for each threshold, one for forced tiles, and some that no
// level has.
type curve [1 << 8]float64

// row is the levels and the mass of what a probe sees.
func (h *Head) row(p Probe, r ranks) (level []uint8, mass []float32) {
	low, high := h.Visible(p.Row)
	return r.level[p.Row*r.columns+low:][:high-low], p.Mass[low:high]
}

// stop walks from keeping everything towards fewer tiles for as long as the
// bound holds. judge is the ranks that a probe judges.
func (h *Head) stop(probes []Probe, judge func(i int) ranks, r ranks) *Result {
	best := &Result{Mean: 1, Lower: 1, Probes: len(probes), ranks: r}
	if len(probes) < 2 {
		return best
	}
	mean := h.means(probes, judge)
	first, last := h.open(mean, len(probes))
	lower := h.bounds(probes, judge, mean, first, last)
	for level := first; level <= last; level++ {
		if !(lower[level] >= h.Gamma) {
			return best
		}
		best.Stop, best.Mean, best.Lower = level, mean[level], lower[level]
	}
	return best
}

// means is the mean coverage at each threshold; it falls with the level.
func (h *Head) means(probes []Probe, judge func(i int) ranks) curve {
	var c, odd curve // two, so that neighbours of one level do not wait for each other
	for i, p := range probes {
		level, mass := h.row(p, judge(i))
		mass = mass[:len(level)]
		for ; len(level) >= 2; level, mass = level[2:], mass[2:] {
			c[level[0]] += float64(mass[0])
			odd[level[1]] += float64(mass[1])
		}
		for j, l := range level {
			c[l] += float64(mass[j])
		}
	}
	for l := range c {
		c[l] += odd[l]
	}
	sum := 0.0
	for l := always; l >= 0; l-- {
		sum += c[l]
		c[l] = sum / float64(len(probes))
	}
	return c
}

// open is the levels at which the bound is not known from the mean alone: above
// them the mean is below gamma, and below them no variance is large enough. What
// is lost, u, lies between 0 and 1, so neighbours differ by at most the larger,
// and the sum of their squared differences is at most 2 sum(u).
func (h *Head) open(mean curve, n int) (first, last int) {
	first = 1
	for last < levels && mean[last+1] >= h.Gamma {
		last++
		largest := math.Sqrt(max(0, 1-mean[last]) / float64(n-1))
		if mean[last]-h.Z*largest >= h.Gamma+1e-6 {
			first = last
		}
	}
	return first, last
}

// bounds is the lower bound of coverage at the thresholds [first, last]. The
// variance is that of neighbours along the sequence, so that a trend does not
// widen it.
func (h *Head) bounds(probes []Probe, judge func(i int) ranks, mean curve, first, last int) (lower curve) {
	var before, at, odd, squares curve
	for i, p := range probes {
		clear(at[first-1 : last+2])
		clear(odd[first-1 : last+2])
		level, mass := h.row(p, judge(i))
		mass = mass[:len(level)]
		within := func(l uint8) uint8 { return uint8(min(max(int(l), first-1), last+1)) } // what is kept at none or at all of them
		for ; len(level) >= 2; level, mass = level[2:], mass[2:] {
			at[within(level[0])] += float64(mass[0])
			odd[within(level[1])] += float64(mass[1])
		}
		for j, l := range level {
			at[within(l)] += float64(mass[j])
		}
		sum := at[last+1] + odd[last+1]
		for l := last; l >= first; l-- {
			sum += at[l] + odd[l]
			d := sum - before[l]
			if before[l] = sum; i > 0 {
				squares[l] += d * d
			}
		}
	}
	n := float64(len(probes))
	for l := first; l <= last; l++ {
		lower[l] = mean[l] - h.Z*math.Sqrt(squares[l]/(2*(n-1))/n)
	}
	return lower
}
