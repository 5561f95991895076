package promise

import (
	"math"
	"math/rand/v2"
	"testing"
)

// proving is a head whose rows are all known, two of each block score, and
// uniform draws check.
func proving(seed uint64, blocks, checks int) (h *Head, rows []Probe) {
	const each = 30
	h = head(seed%5, blocks, everyBlock(blocks, each))
	rows, h.Score = h.Score, nil
	for b := range blocks {
		h.Score = append(h.Score, rows[b*each:b*each+2]...)
	}
	for _, i := range rand.New(rand.NewPCG(seed, 17)).Perm(len(rows))[:checks] {
		h.Check = append(h.Check, rows[i])
	}
	h.Proof = &Proof{Rows: len(rows), Delta: 0.2}
	return h, rows
}

// coverage is of all rows by the tiles of a result.
func coverage(r *Result, rows []Probe) float64 {
	sum := 0.0
	for _, p := range rows {
		for j := range p.Row + 1 {
			if int(r.Row(p.Row)[j]) >= r.Stop {
				sum += float64(p.Mass[j]) / float64(len(rows))
			}
		}
	}
	return sum
}

func TestProvenPromisesAreKept(t *testing.T) {
	const draws, blocks = 300, 12
	broken, sparse := 0, 0
	for seed := range uint64(draws) {
		h, rows := proving(seed, blocks, 60)
		r := h.Find()
		if coverage(r, rows) < h.Gamma-1e-6 {
			broken++
		}
		if h.cost(r) < blocks*(blocks+1)/2 {
			sparse++
			if r.Lower != h.Gamma || r.Probes != 60 {
				t.Fatalf("seed %d: claims %g on %d rows, want %g on 60", seed, r.Lower, r.Probes, h.Gamma)
			}
		}
	}
	if most := int(0.2*draws + 5*math.Sqrt(0.2*0.8*draws)); broken > most {
		t.Errorf("%d of %d promises were broken, want at most %d", broken, draws, most)
	}
	if sparse < draws/2 {
		t.Errorf("%d of %d heads were sparse: the case shows nothing", sparse, draws)
	}
}

// The levels that are proven are the first ones: the search may halve.
func TestProvenLevelsComeFirst(t *testing.T) {
	for seed := range uint64(6) {
		h, _ := proving(seed, 12, 100)
		r := h.all()
		last := 0
		for level := 1; level <= levels; level++ {
			if h.proves(r, level) {
				if level != last+1 {
					t.Fatalf("seed %d: level %d is proven, and %d was not", seed, level, last+1)
				}
				last = level
			}
		}
		if got := h.prove(r).Stop; got != last {
			t.Errorf("seed %d: stops at %d, want %d", seed, got, last)
		}
	}
}

// All rows prove what they are, but for the sum's rounding.
func TestAllRowsProveTheirCoverage(t *testing.T) {
	h, rows := proving(3, 12, 360)
	r := h.Find()
	if truth := coverage(r, rows); truth < h.Gamma || h.cost(r) == 12*13/2 {
		t.Errorf("coverage %g with %d tiles kept, want %g and fewer than all", truth, h.cost(r), h.Gamma)
	}
}
