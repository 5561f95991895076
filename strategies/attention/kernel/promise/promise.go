// Package promise finds, for one head, the fewest tiles whose coverage is at
// least gamma by a lower confidence bound. Exact softmax mass of a few random
// query rows, the probes, ranks the tiles; probes that did not rank a tile
// decide where to stop, since rows that made a score flatter it.
package promise

import "math"

// Tiles are the tiles of one head: which of them can be seen, and which are
// kept in any case.
type Tiles interface {
	Visible(row int) (low, high int)
	Kept(row, column int) bool
}

// Probe is a query row with its exact softmax mass by key block.
type Probe struct {
	Row  int // query block it lies in
	Mass []float32
}

// Head is what is known of one head.
type Head struct {
	Tiles
	QueryBlocks, KeyBlocks int
	Gamma                  float64
	Z                      float64     // standard errors that the bound lies below the mean
	Score                  []Probe     // rank the tiles; by query block
	Check                  []Probe     // decide; nil: each scoring probe decides over the ranks that the others made
	Similarity             [][]float32 // for each query block, its mean query times mean keys, scaled
}

// Result is the tiles to keep: Keep tells of each, and what is promised of them.
type Result struct {
	Mean, Lower float64 // coverage over the deciding probes, and its bound
	Probes      int
	ranks       ranks
	stop        int
}

// Keep says whether a tile belongs to the result, forced ones aside.
func (r *Result) Keep(row, column int) bool { return r.ranks.at(row, column) >= r.stop }

// Find applies the rule. A head in which no threshold holds the promise keeps
// everything.
func (h *Head) Find() *Result {
	pool := h.pool()
	if h.Check == nil {
		return h.crossCheck(pool)
	}
	probed := h.separate(h.rank(h.Score, pool))
	pooled := h.separate(h.rankBy(pool))
	if h.cost(pooled) < h.cost(probed) {
		return pooled
	}
	return probed
}

// cost is the number of tiles that a result keeps.
func (h *Head) cost(r *Result) int {
	kept := 0
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		for j := low; j < high; j++ {
			if h.Kept(row, j) || r.Keep(row, j) {
				kept++
			}
		}
	}
	return kept
}

// separate stops by probes that had no part in the ranks.
func (h *Head) separate(r ranks) *Result {
	curves := make([]curve, len(h.Check))
	for i, p := range h.Check {
		curves[i] = h.curve(p, r)
	}
	return h.stop(curves, r)
}

// folds is how many parts the scoring probes are left out in.
const folds = 4

// crossCheck leaves out a quarter of the probes at a time, one of each query
// block, and judges it by the ranks of the rest.
func (h *Head) crossCheck(pool []float32) *Result {
	var parts [folds]sums
	left := make([]int, len(h.Score)) // the part that each probe is of
	number, block := 0, -1
	for i, p := range h.Score {
		if p.Row != block {
			number, block = 0, p.Row
		}
		left[i] = (number + p.Row) % folds
		number++
	}
	for part := range parts {
		parts[part] = h.newSums()
	}
	for i, p := range h.Score {
		h.addTo(&parts[left[i]], p)
	}
	first, second := h.join(parts[0], parts[1]), h.join(parts[2], parts[3])
	rest := [folds]sums{h.join(parts[1], second), h.join(parts[0], second), h.join(first, parts[3]), h.join(first, parts[2])}
	curves := make([]curve, len(h.Score))
	for part := range folds {
		r := h.rankSums(rest[part], pool)
		for i, p := range h.Score {
			if left[i] == part {
				curves[i] = h.curve(p, r)
			}
		}
	}
	return h.stop(curves, h.rankSums(h.join(first, second), pool))
}

// curve is the coverage of one probe at each threshold.
type curve [levels + 1]float64

func (h *Head) curve(p Probe, r ranks) curve {
	var c curve
	forced := 0.0
	low, high := h.Visible(p.Row)
	for j := low; j < high; j++ {
		if h.Kept(p.Row, j) {
			forced += float64(p.Mass[j])
			continue
		}
		c[r.at(p.Row, j)] += float64(p.Mass[j])
	}
	sum := forced
	for level := levels; level >= 0; level-- {
		sum += c[level]
		c[level] = sum
	}
	return c
}

// stop walks from keeping everything towards fewer tiles for as long as the
// bound holds.
func (h *Head) stop(curves []curve, r ranks) *Result {
	best := &Result{Mean: 1, Lower: 1, Probes: len(curves), ranks: r}
	if len(curves) < 2 {
		return best
	}
	mean, lower := bounds(curves, h.Z)
	for level := 1; level <= levels; level++ {
		if !(lower[level] >= h.Gamma) {
			return best
		}
		best.stop, best.Mean, best.Lower = level, mean[level], lower[level]
	}
	return best
}

// bounds is the mean coverage at each threshold and its lower bound. The
// variance is that of neighbours along the sequence, so that a trend does not
// widen it.
func bounds(curves []curve, z float64) (mean, lower curve) {
	n := float64(len(curves))
	var squares curve
	mean = curves[0]
	for i := range curves[1:] {
		before, at := &curves[i], &curves[i+1]
		for level, c := range at {
			d := c - before[level]
			mean[level] += c
			squares[level] += d * d
		}
	}
	for level := range mean {
		mean[level] /= n
		lower[level] = mean[level] - z*math.Sqrt(squares[level]/(2*(n-1))/n)
	}
	return mean, lower
}
