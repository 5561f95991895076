package cpu

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/trivium-ml/trivium/hardware"
)

func (c *randomCase) prepare(t *testing.T, b hardware.Backend) hardware.Session {
	t.Helper()
	s, err := b.Prepare(context.Background(), &c.problem)
	if err != nil {
		t.Fatal(c, err)
	}
	return s
}

func TestRepresentativeAgainstDefinition(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		worst := 0.0
		for seed := uint64(firstSeed); seed < firstSeed+80; seed++ {
			c := newCase(seed)
			s := c.prepare(t, b)
			rows := []int{1, 5, 64, 128, 150}[seed%5]
			results, err := s.Representative(context.Background(), rows)
			s.Close()
			if err != nil {
				t.Fatal(c, err)
			}
			for k, got := range results {
				heads := len(c.query[0])
				i, h := k/heads, k%heads
				worst = max(worst, c.compareRepresentative(t, i, h, got, c.budget(isa)))
			}
			if t.Failed() {
				t.Fatal(c)
			}
		}
		t.Logf("largest error %.2g, seeds from %d", worst, firstSeed)
	})
}

func (c *randomCase) compareRepresentative(t *testing.T, i, h int, got hardware.RepresentativeScores, limit budget) (worst float64) {
	first := c.query[i][h].Rows - got.Rows
	columns, slashes := make([]float64, len(got.Columns)), make([]float64, len(got.Slashes))
	for r := range got.Rows {
		scores := c.scores(i, h, first+r, false)
		lse := logSumExp(scores)
		worst = max(worst, compareLSE(t, got.LSE[r], lse, limit))
		for n, x := range scores {
			if math.IsInf(x, -1) {
				continue
			}
			a := math.Exp(x-lse) / float64(got.Rows)
			columns[n] += a
			if d := c.problem.Sequences[i].Offset + first + r - n; d >= 0 && d < len(slashes) {
				slashes[d] += a
			}
		}
	}
	for n := range columns {
		worst = max(worst, compareProbability(t, "column", n, float64(got.Columns[n]), columns[n], limit))
		worst = max(worst, compareProbability(t, "slash", n, float64(got.Slashes[n]), slashes[n], limit))
	}
	return worst
}

func compareLSE(t *testing.T, got float32, want float64, limit budget) float64 {
	if math.IsInf(want, -1) && math.IsInf(float64(got), -1) {
		return 0
	}
	e := math.Abs(float64(got) - want)
	if !(e <= limit.lse) {
		t.Errorf("lse %g, want %g", got, want)
	}
	return e
}

func compareProbability(t *testing.T, what string, n int, got, want float64, limit budget) float64 {
	e := math.Abs(got - want)
	if !(e <= limit.probability) {
		t.Errorf("%s %d: %g, want %g", what, n, got, want)
	}
	return e
}

func TestRowMassAgainstDefinition(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		worst := 0.0
		for seed := uint64(firstSeed); seed < firstSeed+80; seed++ {
			c := newCase(seed)
			r := rand.New(rand.NewPCG(seed, 2))
			var sets []hardware.RowSet
			for i := range c.query {
				for h := range c.query[i] {
					set := hardware.RowSet{Sequence: i, Head: h}
					for range r.IntN(2 * c.query[i][h].Rows) {
						set.Rows = append(set.Rows, int32(r.IntN(c.query[i][h].Rows)))
					}
					sets = append(sets, set)
				}
			}
			size := 16 * (1 + r.IntN(16))
			s := c.prepare(t, b)
			results, err := s.RowMass(context.Background(), sets, size)
			s.Close()
			if err != nil {
				t.Fatal(c, err)
			}
			for k, set := range sets {
				worst = max(worst, c.compareMass(t, set, results[k], size, c.budget(isa)))
			}
			if t.Failed() {
				t.Fatal(c)
			}
		}
		t.Logf("largest error %.2g, seeds from %d", worst, firstSeed)
	})
}

func (c *randomCase) compareMass(t *testing.T, set hardware.RowSet, got hardware.RowMass, size int, limit budget) (worst float64) {
	keys := c.problem.Sequences[set.Sequence].Key[0].Rows
	blocks := (keys + size - 1) / size
	step := max(1, len(set.Rows)/8)
	for k := 0; k < len(set.Rows); k += step {
		scores := c.scores(set.Sequence, set.Head, int(set.Rows[k]), false)
		lse := logSumExp(scores)
		worst = max(worst, compareLSE(t, got.LSE[k], lse, limit))
		want := make([]float64, blocks)
		for n, x := range scores {
			if !math.IsInf(x, -1) {
				want[n/size] += math.Exp(x - lse)
			}
		}
		for j := range want {
			worst = max(worst, compareProbability(t, "block", j, float64(got.Mass[k*blocks+j]), want[j], limit))
		}
	}
	return worst
}

func TestPoolAgainstDefinition(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for seed := uint64(firstSeed); seed < firstSeed+60; seed++ {
			c := newCase(seed)
			s := c.prepare(t, b)
			size := 1 + int(seed%200)
			for _, query := range []bool{false, true} {
				got, err := s.Pool(context.Background(), query, size)
				if err != nil {
					t.Fatal(c, err)
				}
				c.comparePool(t, query, size, got)
			}
			s.Close()
			if t.Failed() {
				t.Fatal(c)
			}
		}
	})
}

func (c *randomCase) comparePool(t *testing.T, query bool, size int, got []hardware.Pooled) {
	k := 0
	for i := range c.query {
		list, offset := c.key[i], 0
		if query {
			list, offset = c.query[i], c.problem.Sequences[i].Offset
		}
		for _, m := range list {
			if want := (offset+m.Rows-1)/size - offset/size + 1; got[k].Blocks != want || got[k].Dim != m.Cols {
				t.Fatalf("%d blocks of %d: want %d of %d", got[k].Blocks, got[k].Dim, want, m.Cols)
			}
			sums, counts := make([]float64, len(got[k].Data)), make([]float64, got[k].Blocks)
			for r := range m.Rows {
				block := (offset+r)/size - offset/size
				counts[block]++
				for j, x := range m.values[r] {
					sums[block*m.Cols+j] += x
				}
			}
			for j, x := range got[k].Data {
				if want := sums[j] / counts[j/m.Cols]; !(math.Abs(float64(x)-want) <= 2e-6) {
					t.Fatalf("mean %d: %g, want %g", j, x, want)
				}
			}
			k++
		}
	}
}
