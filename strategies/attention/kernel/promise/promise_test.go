package promise

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/hardware/cpu"
)

// triangle is a causal grid with column 0 and the diagonal forced.
type triangle int

func (triangle) Visible(row int) (low, high int) { return 0, row + 1 }
func (triangle) AppendRow(columns []int32, row int) []int32 {
	return append(columns, 0, int32(row))
}

// forced says whether a tile of a triangle is.
func forced(row, column int) bool { return column == 0 || column == row }

var ranker = func() Ranker {
	backend, err := cpu.Open("")
	if err != nil {
		panic(err)
	}
	return backend
}()

// head draws the mass of rows that look at a few loud columns.
func head(seed uint64, blocks int, probes []int) *Head {
	random := rand.New(rand.NewPCG(seed, 3))
	loud := make([]float64, blocks)
	for j := range loud {
		loud[j] = 2 * random.NormFloat64()
	}
	h := &Head{Tiles: triangle(blocks), Ranker: ranker, QueryBlocks: blocks, KeyBlocks: blocks, Gamma: 0.8, Z: 3}
	row := func(i int, noise float64) []float32 {
		mass, sum := make([]float32, blocks), 0.0
		for j := range i + 1 {
			x := math.Exp(loud[j] + noise*random.NormFloat64())
			mass[j], sum = float32(x), sum+x
		}
		for j := range mass {
			mass[j] /= float32(sum)
		}
		return mass
	}
	for _, i := range probes {
		h.Score = append(h.Score, Probe{Row: i, Mass: row(i, 1)})
	}
	for range blocks {
		for j := range blocks {
			h.Similarity = append(h.Similarity, float32(loud[j]+random.NormFloat64()))
		}
	}
	return h
}

func everyBlock(blocks, each int) []int {
	var rows []int
	for i := range blocks {
		for range each {
			rows = append(rows, i)
		}
	}
	return rows
}

// all ranks by all scoring probes.
func (h *Head) all() ranks { return h.rank(h.Score, make([]int32, len(h.Score)), 1)[0] }

// levelOf is the level of a score.
func levelOf(score float64) int {
	level := 0
	for level < levels && score >= float64(thresholds[level]) {
		level++
	}
	return level
}

// naiveScore is the score of a tile straight from its definition.
func naiveScore(h *Head, probes []Probe, row, column int) float64 {
	own, ownCount, vertical, weight := 0.0, 0.0, 0.0, 0.0
	for _, p := range probes {
		if p.Row < column || p.Row > row+reach || p.Row < row-reach {
			continue
		}
		d := float64(p.Row - row)
		w := math.Exp(-d * d / (2 * deviation * deviation))
		vertical, weight = vertical+w*float64(p.Mass[column]), weight+w
		if p.Row == row {
			own, ownCount = own+float64(p.Mass[column]), ownCount+1
		}
	}
	if weight > 0 {
		vertical /= weight
	}
	if ownCount > 0 {
		own /= ownCount
	} else {
		own = vertical
	}
	sum := 0.0
	for j := range row + 1 {
		sum += math.Exp(float64(h.Similarity[row*h.KeyBlocks+j]))
	}
	return (own + vertical + 0.5*math.Exp(float64(h.Similarity[row*h.KeyBlocks+column]))/sum) / 2.5
}

func TestRanksFollowTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.IntRange(1, 30).Draw(t, "blocks")
		probes := rapid.SliceOfN(rapid.IntRange(0, blocks-1), 0, 60).Draw(t, "probes")
		slices.Sort(probes)
		h := head(rapid.Uint64().Draw(t, "seed"), blocks, probes)
		ranks := h.all()
		for i := range blocks {
			for j := range i + 1 {
				if forced(i, j) {
					if got := ranks.at(i, j); got != always {
						t.Fatalf("forced tile (%d, %d): level %d, want %d", i, j, got, always)
					}
					continue
				}
				score := naiveScore(h, h.Score, i, j)
				// A score that lies on a threshold may fall to either side of it.
				if got := ranks.at(i, j); got != levelOf(score*(1-1e-5)) && got != levelOf(score*(1+1e-5)) {
					t.Fatalf("tile (%d, %d): level %d, want %d", i, j, got, levelOf(score))
				}
			}
		}
	})
}

// Each probe is judged by a rank that it had no part in, at the last threshold
// whose bound holds.
func TestCrossCheckFollowsTheDefinition(t *testing.T) {
	for seed := range uint64(4) {
		h := head(seed, 16, everyBlock(16, 4))
		got := h.Find()
		stop, mean, lower := naiveCrossCheck(h)
		if got.Stop != stop || math.Abs(got.Mean-mean) > 1e-6 || math.Abs(got.Lower-lower) > 1e-6 {
			t.Errorf("seed %d: stops at %d with %g and %g, want %d with %g and %g", seed, got.Stop, got.Mean, got.Lower, stop, mean, lower)
		}
		if got.Lower < h.Gamma || got.Probes != 64 {
			t.Errorf("seed %d: bound %g on %d probes", seed, got.Lower, got.Probes)
		}
	}
}

// Levels that are not looked at are those whose bound holds, or cannot hold.
func TestOpenLevelsDecide(t *testing.T) {
	for seed := range uint64(8) {
		h := head(seed, 24, everyBlock(24, 4))
		h.Gamma, h.Z = 0.6+0.05*float64(seed), float64(seed%4)
		r := h.all()
		judge := func(int) ranks { return r }
		mean := h.means(h.Score, judge)
		first, last := h.open(mean, len(h.Score))
		lower := h.bounds(h.Score, judge, mean, 1, levels)
		for level := 1; level <= levels; level++ {
			if level < first && lower[level] < h.Gamma {
				t.Errorf("seed %d: bound %g at level %d, below the open %d to %d, want %g", seed, lower[level], level, first, last, h.Gamma)
			}
			if level > last && lower[level] >= h.Gamma {
				t.Errorf("seed %d: bound %g at level %d, above the open %d to %d, want less than %g", seed, lower[level], level, first, last, h.Gamma)
			}
		}
	}
}

func naiveCrossCheck(h *Head) (stop int, mean, lower float64) {
	mean, lower = 1, 1
	for level := 1; level <= levels; level++ {
		threshold := lowest * math.Pow(step, float64(level-1)) * (1 - 1e-9)
		var kept []float64
		for i, p := range h.Score {
			var rest []Probe
			for k, other := range h.Score {
				if (k%4+other.Row)%4 != (i%4+p.Row)%4 {
					rest = append(rest, other)
				}
			}
			sum := 0.0
			for j := range p.Row + 1 {
				if forced(p.Row, j) || naiveScore(h, rest, p.Row, j) >= threshold {
					sum += float64(p.Mass[j])
				}
			}
			kept = append(kept, sum)
		}
		m, squares := 0.0, 0.0
		for i, c := range kept {
			m += c / float64(len(kept))
			if i > 0 {
				squares += (c - kept[i-1]) * (c - kept[i-1])
			}
		}
		r := float64(len(kept))
		l := m - h.Z*math.Sqrt(squares/(2*(r-1))/r)
		if l < h.Gamma {
			return stop, mean, lower
		}
		stop, mean, lower = level, m, l
	}
	return stop, mean, lower
}

func TestSeparateChecksTakeTheSparser(t *testing.T) {
	h := head(5, 40, everyBlock(40, 2))
	h.Check = h.Score[40:]
	h.Score = h.Score[:40]
	got := h.Find()
	probed, pooled := h.separate(h.all()), h.separate(h.rank(nil, nil, 0)[0])
	if h.cost(got) != min(h.cost(probed), h.cost(pooled)) {
		t.Errorf("keeps %d tiles, the candidates %d and %d", h.cost(got), h.cost(probed), h.cost(pooled))
	}
	if got.Probes != 40 {
		t.Errorf("%d probes decide, want the 40 that check", got.Probes)
	}
}

func TestPromisesThatCannotBeKept(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(h *Head)
	}{
		{"everything", func(h *Head) { h.Gamma = 1 + 1e-6 }},
		{"one probe", func(h *Head) { h.Score = h.Score[:1] }},
		{"no probe", func(h *Head) { h.Score = nil }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := head(1, 16, everyBlock(16, 4))
			c.spoil(h)
			if r := h.Find(); h.cost(r) != 16*17/2 {
				t.Errorf("keeps %d tiles, want all %d", h.cost(r), 16*17/2)
			}
		})
	}
}

// The rule by itself, at 8k and at 16k.
func BenchmarkFind(b *testing.B) {
	for _, blocks := range []int{64, 128} {
		b.Run(fmt.Sprint(blocks), func(b *testing.B) {
			h := head(1, blocks, everyBlock(blocks, 4))
			for b.Loop() {
				h.Find()
			}
		})
	}
}
