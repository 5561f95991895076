package kernel

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
)

func TestUniformRowsAreEverySetAlike(t *testing.T) {
	const n, count, draws = 7, 3, 7000
	sets := map[[count]int32]int{}
	for seed := range draws {
		rows := uniformRows(freshSource(int64(seed), 2, "rows"), n, count)
		if len(rows) != count || !slices.IsSorted(rows) || rows[0] < 0 || rows[count-1] >= n {
			t.Fatalf("seed %d: rows %v of %d", seed, rows, n)
		}
		sets[[count]int32(rows)]++
	}
	const kinds = 35 // of three rows of seven
	for set, times := range sets {
		if math.Abs(float64(times)-draws/kinds) > 6*math.Sqrt(draws/kinds) {
			t.Errorf("rows %v in %d of %d draws, want about %d", set, times, draws, draws/kinds)
		}
	}
	if len(sets) != kinds {
		t.Errorf("%d sets of rows, want %d", len(sets), kinds)
	}
	if rows := uniformRows(freshSource(1, 2, "rows"), 5, 9); !slices.Equal(rows, []int32{0, 1, 2, 3, 4}) {
		t.Errorf("9 of 5 rows are %v, want all", rows)
	}
}

// Rows of one purpose, head or seed say nothing of another's.
func TestFreshSourcesDiffer(t *testing.T) {
	seen := map[uint64]string{}
	for _, seed := range []int64{-1, 0, 1} {
		for slot := range 3 {
			for _, purpose := range []string{"rows", "order"} {
				first := freshSource(seed, slot, purpose).Uint64()
				if other, used := seen[first]; used {
					t.Errorf("seed %d, slot %d, %s begins as %s", seed, slot, purpose, other)
				}
				seen[first] = purpose
			}
		}
	}
}

// The proven bound of a head holds for nearly every seed, where the normal one
// does not: one row in a hundred is lost, and most draws miss all of these.
func TestReportProves(t *testing.T) {
	const rows, count, seeds = 1000, 50, 2000
	kept := func(row int32) float64 {
		if row%100 == 13 {
			return 0
		}
		return 1
	}
	const truth = 0.99
	wrong := map[string]int{}
	for seed := range int64(seeds) {
		for _, p := range []probing{{seed: seed, count: count}, {seed: seed, count: count, delta: 0.05}} {
			var values []float64
			for _, row := range p.rows(3, rows) {
				values = append(values, kept(row))
			}
			h := core.HeadReport{Kept: 1, Blocks: 2}
			p.report(&h, values, drawn{slot: 3, rows: rows, heads: 8})
			if *h.CoverageLower > truth {
				wrong[h.Bound]++
			}
			if h.ProbeRows != count || *h.CoverageLower > *h.Coverage {
				t.Fatalf("seed %d: %d rows, bound %g of %g", seed, h.ProbeRows, *h.CoverageLower, *h.Coverage)
			}
			if p.delta > 0 && (h.Delta != 0.05 || *h.CoverageLowerAll > *h.CoverageLower || *h.CoverageLowerAll < 0.5) {
				t.Fatalf("seed %d: delta %g, bound %g, for all heads %g", seed, h.Delta, *h.CoverageLower, *h.CoverageLowerAll)
			}
		}
	}
	if most := int(0.05*seeds + 5*math.Sqrt(0.05*seeds)); wrong[core.BoundProven] > most {
		t.Errorf("the proven bound failed %d times of %d, want at most %d", wrong[core.BoundProven], seeds, most)
	}
	if wrong[core.BoundNormal] < seeds/4 {
		t.Errorf("the normal bound failed %d times of %d: the case shows nothing", wrong[core.BoundNormal], seeds)
	}
}

func TestCompleteHeadsNeedNoProof(t *testing.T) {
	h := core.HeadReport{Kept: 6, Blocks: 6}
	probing{count: 2, delta: 0.1}.report(&h, []float64{0.999999, 1}, drawn{rows: 100, heads: 1})
	if *h.Coverage != 1 || *h.CoverageLower != 1 || *h.CoverageLowerAll != 1 || h.Bound != core.BoundProven {
		t.Errorf("report %+v of a head that keeps everything", h)
	}
}

func TestProofsNeedRows(t *testing.T) {
	part := []core.HeadReport{{Kept: 1, Blocks: 2}}
	err := probing{delta: 0.1}.check(core.Info{Kind: core.Attention, Name: "streaming"}, part)
	var typed *core.Error
	if !errors.As(err, &typed) || typed.Kind != core.ErrInvalidArgument {
		t.Errorf("error %v, want an invalid argument", err)
	}
	part[0].Bound = core.BoundProven
	for name, err := range map[string]error{
		"a proven promise":  probing{delta: 0.1}.check(core.Info{}, part),
		"rows":              probing{delta: 0.1, count: 8}.check(core.Info{}, []core.HeadReport{{Kept: 1, Blocks: 2}}),
		"everything":        probing{delta: 0.1}.check(core.Info{}, []core.HeadReport{{Kept: 2, Blocks: 2}}),
		"no proof is asked": probing{}.check(core.Info{}, []core.HeadReport{{Kept: 1, Blocks: 2}}),
	} {
		if err != nil {
			t.Errorf("%s: %v, want no error", name, err)
		}
	}
}
