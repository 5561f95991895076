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

func levelOf(score float64) uint8 {
	if !(score >= lowest) {
		return 0
	}
	return uint8(min(levels, 1+int(math.Log(score/lowest)/math.Log(step)+1e-9)))
}

func (h *Head) rankBy(score []float32) ranks {
	r := ranks{columns: h.KeyBlocks, level: make([]uint8, len(score))}
	for i, s := range score {
		r.level[i] = levelOf(float64(s))
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
	own, count := h.own(probes)
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
			r.level[row*h.KeyBlocks+j] = levelOf((mine + vertical + 0.5*float64(pool[row*h.KeyBlocks+j])) / 2.5)
		}
	}
	return r
}

// own adds up the probes of each query block.
func (h *Head) own(probes []Probe) (sums []float32, count []float64) {
	sums, count = make([]float32, h.QueryBlocks*h.KeyBlocks), make([]float64, h.QueryBlocks)
	for _, p := range probes {
		count[p.Row]++
		for j, m := range p.Mass {
			sums[p.Row*h.KeyBlocks+j] += m
		}
	}
	return sums, count
}

// vertical adds up the probes around a query block at each key block that they
// see, with Gaussian weights.
func (h *Head) vertical(row int, own []float32, count, sum, weight []float64) {
	for other := max(0, row-reach); other <= min(h.QueryBlocks-1, row+reach); other++ {
		if count[other] == 0 {
			continue
		}
		d := float64(other-row) / deviation
		w := math.Exp(-d * d / 2)
		low, high := h.Visible(other)
		for j := low; j < high; j++ {
			sum[j] += w * float64(own[other*h.KeyBlocks+j])
			weight[j] += w * count[other]
		}
	}
}
