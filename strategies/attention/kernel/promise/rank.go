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

// coarse is the level of the smallest score with these upper bits: so many that
// no two thresholds share them.
const coarseShift = 18

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
	if level < levels && score >= thresholds[level+1] {
		level++
	}
	return level
}

// always is the level of tiles that are forced.
const always = levels + 1

// newRanks has the forced tiles in place.
func (h *Head) newRanks() ranks {
	n := h.QueryBlocks * h.KeyBlocks
	if h.forced == nil {
		h.forced = h.bytes(n)
		for row := range h.QueryBlocks {
			low, high := h.Visible(row)
			for j := low; j < high; j++ {
				if h.Kept(row, j) {
					h.forced[row*h.KeyBlocks+j] = always
				}
			}
		}
	}
	r := ranks{columns: h.KeyBlocks, level: h.bytes(n)}
	copy(r.level, h.forced)
	return r
}

func (h *Head) rankBy(score []float32) ranks {
	r := h.newRanks()
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		level := r.level[row*h.KeyBlocks+low:][:high-low]
		for j, s := range score[row*h.KeyBlocks+low:][:len(level)] {
			if level[j] != always {
				level[j] = levelOf(s)
			}
		}
	}
	return r
}

// pool is the probability of each tile by block means alone.
func (h *Head) pool() []float32 {
	pool := h.floats(h.QueryBlocks * h.KeyBlocks)
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		similarity := h.Similarity[row][low:high]
		probability := pool[row*h.KeyBlocks+low:][:len(similarity)]
		top, sum := float32(math.Inf(-1)), 0.0
		for _, x := range similarity {
			top = max(top, x)
		}
		for j, x := range similarity {
			e := math.Exp(float64(x) - float64(top))
			probability[j], sum = float32(e), sum+e
		}
		scale := float32(1 / sum)
		for j := range probability {
			probability[j] *= scale
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
	h.spread(&all)
	return h.rankSums(all, pool)
}

func (h *Head) rankSums(s sums, pool []float32) ranks {
	r := h.newRanks()
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		at := row*h.KeyBlocks + low
		level := r.level[at:][:high-low]
		own, vertical, weight, pool := s.mass[at:][:len(level)], s.vertical[at:][:len(level)], s.weight[at:][:len(level)], pool[at:][:len(level)]
		each := float32(0) // of own
		if s.count[row] > 0 {
			each = 1 / s.count[row]
		}
		for j := range level {
			if level[j] == always {
				continue
			}
			around := float32(0)
			if weight[j] > 0 {
				around = vertical[j] / weight[j]
			}
			mine := own[j] * each
			if each == 0 {
				mine = around
			}
			level[j] = levelOf((mine + around + pool[j]/2) * (1 / 2.5))
		}
	}
	return r
}

// sums adds up the probes of each query block, and counts them; vertical and
// weight are the averages around each query block before they are divided.
type sums struct {
	mass, vertical, weight []float32 // [query blocks, key blocks]
	count                  []float32
}

func (h *Head) newSums() sums {
	n := h.QueryBlocks * h.KeyBlocks
	all := h.floats(3*n + h.QueryBlocks)
	return sums{mass: all[:n:n], vertical: all[n : 2*n : 2*n], weight: all[2*n : 3*n : 3*n], count: all[3*n:]}
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
		add(s.mass[at:][:high-low], a.mass[at:], b.mass[at:])
		add(s.vertical[at:][:high-low], a.vertical[at:], b.vertical[at:])
		add(s.weight[at:][:high-low], a.weight[at:], b.weight[at:])
	}
	return s
}

func add(to, a, b []float32) {
	a, b = a[:len(to)], b[:len(to)]
	for i := range to {
		to[i] = a[i] + b[i]
	}
}

// spread adds up the probes around each query block at each key block that they
// see, with Gaussian weights.
func (h *Head) spread(s *sums) {
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		vertical, weight := s.vertical[row*h.KeyBlocks:][:high], s.weight[row*h.KeyBlocks:][:high]
		var near nearby
		all, from, to := float32(0), low, high // what all around see
		for other := max(0, row-reach); other <= min(h.QueryBlocks-1, row+reach); other++ {
			if s.count[other] == 0 {
				continue
			}
			w := gaussian[other-row+reach]
			near.add(vertical[low:], s.mass[other*h.KeyBlocks+low:][:high-low], w) // 0 where it sees nothing
			first, last := h.Visible(other)
			all, from, to = all+w*s.count[other], max(from, first), min(to, last)
		}
		near.flush(vertical[low:])
		from, to = min(from, high), max(to, low)
		if from >= to {
			from, to = high, high
		}
		for j := from; j < to; j++ {
			weight[j] = all
		}
		for other := max(0, row-reach); other <= min(h.QueryBlocks-1, row+reach); other++ {
			first, last := h.Visible(other)
			w := gaussian[other-row+reach] * s.count[other]
			for j := max(first, low); j < min(last, from); j++ {
				weight[j] += w
			}
			for j := max(first, to); j < min(last, high); j++ {
				weight[j] += w
			}
		}
	}
}

// nearby collects rows that are to be added with a weight, four at a time.
type nearby struct {
	rows   [4][]float32
	weight [4]float32
	count  int
}

func (n *nearby) add(sum, row []float32, weight float32) {
	n.rows[n.count], n.weight[n.count] = row, weight
	if n.count++; n.count < len(n.rows) {
		return
	}
	n.count = 0
	a, b, c, d := n.rows[0][:len(sum)], n.rows[1][:len(sum)], n.rows[2][:len(sum)], n.rows[3][:len(sum)]
	for j := range sum {
		sum[j] += (n.weight[0]*a[j] + n.weight[1]*b[j]) + (n.weight[2]*c[j] + n.weight[3]*d[j])
	}
}

func (n *nearby) flush(sum []float32) {
	for i := range n.count {
		for j, m := range n.rows[i] {
			sum[j] += n.weight[i] * m
		}
	}
	n.count = 0
}

// gaussian is the weight of a query block by its distance from -reach on.
var gaussian = func() (w [2*reach + 1]float32) {
	for i := range w {
		d := float64(i-reach) / deviation
		w[i] = float32(math.Exp(-d * d / 2))
	}
	return w
}()
