package promise

import "math"

// levels is the number of thresholds a score is held against; level 0 keeps
// every tile, and level l those with a score of at least lowest*step^(l-1).
const (
	levels = 240
	lowest = 1e-7
)

// step makes the last threshold 1.
var step = math.Pow(lowest, -1.0/(levels-1))

// ranks is the level of every tile: the highest whose threshold its score
// reaches.
type ranks struct {
	columns int
	level   []uint8
}

func (r ranks) at(row, column int) int { return int(r.level[row*r.columns+column]) }

// thresholds[l] is what a score of level l reaches.
var thresholds = func() (t [levels + 1]float32) {
	for l := 1; l <= levels; l++ {
		t[l] = float32(lowest * math.Pow(step, float64(l-1)))
	}
	return t
}()

// coarse is the level of the smallest score with these upper bits, a quarter of
// an octave each, which hold fewer than three levels.
const coarseShift = 21

var coarse = func() (c [1 << (31 - coarseShift)]uint8) {
	for i := range c {
		smallest := math.Float32frombits(uint32(i) << coarseShift)
		for c[i] < levels && smallest >= thresholds[c[i]+1] {
			c[i]++
		}
	}
	return c
}()

func levelOf(score float32) uint8 {
	if !(score >= lowest) {
		return 0
	}
	level := coarse[math.Float32bits(score)>>coarseShift]
	for level < levels && score >= thresholds[level+1] {
		level++
	}
	return level
}

func (h *Head) rankBy(score []float32) ranks {
	r := ranks{columns: h.KeyBlocks, level: make([]uint8, len(score))}
	for i, s := range score {
		r.level[i] = levelOf(s)
	}
	return r
}

// pool is the probability of each tile by block means alone.
func (h *Head) pool() []float32 {
	pool := make([]float32, h.QueryBlocks*h.KeyBlocks)
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		top, sum := math.Inf(-1), 0.0
		for j := low; j < high; j++ {
			top = max(top, float64(h.Similarity[row][j]))
		}
		for j := low; j < high; j++ {
			sum += math.Exp(float64(h.Similarity[row][j]) - top)
		}
		for j := low; j < high; j++ {
			pool[row*h.KeyBlocks+j] = float32(math.Exp(float64(h.Similarity[row][j])-top) / sum)
		}
	}
	return pool
}

// reach is how many query blocks away a probe still counts: four standard
// deviations of the vertical average.
const (
	deviation = 2.0
	reach     = 8
)

// rank scores a tile by the probes of its query block, the probes of the blocks
// around it at the same key block, and block means: (own + vertical + pool/2) /
// 2.5. Where a block has no probe the vertical average stands in for it.
func (h *Head) rank(probes []Probe, pool []float32) ranks {
	all := h.newSums()
	for _, p := range probes {
		h.addTo(&all, p)
	}
	return h.rankSums(all, pool)
}

func (h *Head) rankSums(s sums, pool []float32) ranks {
	own, count := s.mass, s.count
	r := ranks{columns: h.KeyBlocks, level: make([]uint8, len(pool))}
	sum, weight := make([]float64, h.KeyBlocks), make([]float64, h.KeyBlocks)
	for row := range h.QueryBlocks {
		clear(sum)
		clear(weight)
		h.vertical(row, own, count, sum, weight)
		low, high := h.Visible(row)
		for j := low; j < high; j++ {
			vertical := 0.0
			if weight[j] > 0 {
				vertical = sum[j] / weight[j]
			}
			mine := vertical
			if count[row] > 0 {
				mine = float64(own[row*h.KeyBlocks+j]) / count[row]
			}
			r.level[row*h.KeyBlocks+j] = levelOf(float32((mine + vertical + 0.5*float64(pool[row*h.KeyBlocks+j])) / 2.5))
		}
	}
	return r
}

// sums adds up the probes of each query block, and counts them.
type sums struct {
	mass  []float32 // [query blocks, key blocks]
	count []float64
}

func (h *Head) newSums() sums {
	return sums{mass: make([]float32, h.QueryBlocks*h.KeyBlocks), count: make([]float64, h.QueryBlocks)}
}

func (h *Head) addTo(s *sums, p Probe) {
	s.count[p.Row]++
	low, high := h.Visible(p.Row)
	row := s.mass[p.Row*h.KeyBlocks+low:][:high-low]
	for j, m := range p.Mass[low:high] {
		row[j] += m
	}
}

// join adds two sums.
func (h *Head) join(a, b sums) sums {
	s := h.newSums()
	for row := range s.count {
		s.count[row] = a.count[row] + b.count[row]
		low, high := h.Visible(row)
		at := row*h.KeyBlocks + low
		to, x, y := s.mass[at:][:high-low], a.mass[at:][:high-low], b.mass[at:][:high-low]
		for j := range to {
			to[j] = x[j] + y[j]
		}
	}
	return s
}

// vertical adds up the probes around a query block at each key block that they
// see, with Gaussian weights.
func (h *Head) vertical(row int, own []float32, count, sum, weight []float64) {
	first, last := max(0, row-reach), min(h.QueryBlocks-1, row+reach)
	all, from, to := 0.0, 0, h.KeyBlocks // what every one of them sees, and the weight it has
	for other := first; other <= last; other++ {
		if count[other] > 0 {
			low, high := h.Visible(other)
			from, to = max(from, low), min(to, high)
			all += gaussian[other-row+reach] * count[other]
		}
	}
	from = min(from, to)
	for j := from; j < to; j++ {
		weight[j] = all
	}
	for other := first; other <= last; other++ {
		if count[other] == 0 {
			continue
		}
		w := gaussian[other-row+reach]
		low, high := h.Visible(other)
		part := sum[low:high]
		for j, m := range own[other*h.KeyBlocks+low:][:len(part)] {
			part[j] += w * float64(m)
		}
		for j := low; j < min(from, high); j++ {
			weight[j] += w * count[other]
		}
		for j := max(to, low); j < high; j++ {
			weight[j] += w * count[other]
		}
	}
}

// gaussian is the weight of a query block by its distance from -reach on.
var gaussian = func() (w [2*reach + 1]float64) {
	for i := range w {
		d := float64(i-reach) / deviation
		w[i] = math.Exp(-d * d / 2)
	}
	return w
}()
