package promise

import (
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

// levels is the number of thresholds a score is held against; level 0 keeps
// every tile, and level l those with a score of at least lowest*step^(l-1).
const (
	levels = 240
	lowest = 1e-7
)

// step makes the last threshold 1.
var step = math.Pow(lowest, -1.0/(levels-1))

// thresholds[l-1] is what a score of level l reaches.
var thresholds = func() (t [levels]float32) {
	for l := range t {
		t[l] = float32(lowest * math.Pow(step, float64(l)))
	}
	return t
}()

// always is the level of tiles that are forced.
const always = levels + 1

// reach is how many query blocks away a probe still counts: four standard
// deviations of the vertical average.
const (
	deviation = 2.0
	reach     = 8
)

// gaussian is the weight of a query block by its distance from -reach on.
var gaussian = func() (w [2*reach + 1]float32) {
	for i := range w {
		d := float64(i-reach) / deviation
		w[i] = float32(math.Exp(-d * d / 2))
	}
	return w
}()

// ranks is the level of every tile: the highest whose threshold its score
// reaches.
type ranks struct {
	columns int
	level   []uint8
}

func (r ranks) at(row, column int) int { return int(r.level[row*r.columns+column]) }

// rank scores a tile by the probes of its query block, the probes of the blocks
// around it at the same key block, and block means; with no parts by block means
// alone. parts of the probes are left out in turn, where there are several, and
// then none. See hardware.TileLevels.
func (h *Head) rank(probes []Probe, part []int32, parts int) []ranks {
	t := &hardware.TileLevels{Rows: h.QueryBlocks, Columns: h.KeyBlocks, Similarity: h.Similarity, Parts: parts,
		Low: make([]int32, h.QueryBlocks), High: make([]int32, h.QueryBlocks), Weight: gaussian[:], Thresholds: thresholds[:]}
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		t.Low[row], t.High[row] = int32(low), int32(high)
	}
	if parts > 0 {
		t.Part, t.Row, t.Mass = part, make([]int32, len(probes)), h.floats(len(probes)*h.KeyBlocks+hardware.LevelRoom)
		for i, p := range probes {
			t.Row[i] = int32(p.Row)
			copy(t.Mass[i*h.KeyBlocks:], p.Mass)
		}
	}
	n := h.QueryBlocks * h.KeyBlocks
	all := make([]ranks, t.Choices())
	level := h.bytes(len(all) * n)
	h.Levels(t, level)
	for i := range all {
		all[i] = ranks{columns: h.KeyBlocks, level: level[i*n : (i+1)*n]}
	}
	h.force(all)
	return all
}

// force gives the forced tiles their level.
func (h *Head) force(all []ranks) {
	var columns []int32
	for row := range h.QueryBlocks {
		columns = h.AppendRow(columns[:0], row)
		for _, r := range all {
			level := r.level[row*h.KeyBlocks:][:h.KeyBlocks]
			for _, j := range columns {
				level[j] = always
			}
		}
	}
}
