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
	errors := worst{}
	for seed := uint64(firstSeed); seed < firstSeed+80; seed++ {
		c := newCase(seed)
		rows := []int{1, 5, 64, 128, 150}[seed%5]
		want := c.representative(rows)
		for isa, b := range backends(t) {
			s := c.prepare(t, b)
			results, err := s.Representative(context.Background(), rows)
			if err != nil {
				t.Fatal(c, err)
			}
			for k := range results {
				errors.add(isa, compareRepresentative(t, isa, results[k], want[k], c.scored(isa)))
			}
			s.Close()
		}
		if t.Failed() {
			t.Fatal(c)
		}
	}
	t.Logf("largest errors %v, seeds from %d", errors, firstSeed)
}

// representativeSums is the result for a head by definition.
type representativeSums struct{ columns, slashes, lse []float64 }

func (c *randomCase) representative(rows int) []representativeSums {
	var all []representativeSums
	for i := range c.query {
		keys := c.problem.Sequences[i].Key[0].Rows
		for h, q := range c.query[i] {
			n := min(rows, q.Rows)
			w := representativeSums{columns: make([]float64, keys), slashes: make([]float64, keys)}
			for row := q.Rows - n; row < q.Rows; row++ {
				scores := c.scores(i, h, row, false)
				lse := logSumExp(scores)
				w.lse = append(w.lse, lse)
				for k, x := range scores {
					if math.IsInf(x, -1) {
						continue
					}
					a := math.Exp(x-lse) / float64(n)
					w.columns[k] += a
					if d := c.problem.Sequences[i].Offset + row - k; d >= 0 && d < keys {
						w.slashes[d] += a
					}
				}
			}
			all = append(all, w)
		}
	}
	return all
}

func compareRepresentative(t *testing.T, isa string, got hardware.RepresentativeScores, want representativeSums, limit budget) (e float64) {
	for r, lse := range want.lse {
		e = max(e, compareLSE(t, isa, got.LSE[r], lse, limit))
	}
	for n := range want.columns {
		e = max(e, compareProbability(t, isa+" column", n, float64(got.Columns[n]), want.columns[n], limit.kept(want.columns[n])))
		e = max(e, compareProbability(t, isa+" slash", n, float64(got.Slashes[n]), want.slashes[n], limit.kept(want.slashes[n])))
	}
	return e
}

func compareLSE(t *testing.T, isa string, got float32, want float64, limit budget) float64 {
	if math.IsInf(want, -1) && math.IsInf(float64(got), -1) {
		return 0
	}
	e := math.Abs(float64(got) - want)
	if !(e <= limit.lse) {
		t.Errorf("%s: lse %g, want %g", isa, got, want)
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
	errors := worst{}
	for seed := uint64(firstSeed); seed < firstSeed+80; seed++ {
		c := newCase(seed)
		r := rand.New(rand.NewPCG(seed, 2))
		sets := c.randomRows(r)
		size := 16 * (1 + r.IntN(16))
		want := c.rowMasses(sets, size)
		for isa, b := range backends(t) {
			s := c.prepare(t, b)
			results, err := s.RowMass(context.Background(), sets, size)
			s.Close()
			if err != nil {
				t.Fatal(c, err)
			}
			for _, w := range want {
				got, k := results[w.set], w.place
				errors.add(isa, compareLSE(t, isa, got.LSE[k], w.lse, c.scored(isa)))
				for j := range w.mass {
					errors.add(isa, compareProbability(t, isa+" block", j, float64(got.Mass[k*len(w.mass)+j]), w.mass[j], c.scored(isa)))
				}
			}
		}
		if t.Failed() {
			t.Fatal(c)
		}
	}
	t.Logf("largest errors %v, seeds from %d", errors, firstSeed)
}

// randomRows draws rows of each head, in no order, with repeats.
func (c *randomCase) randomRows(r *rand.Rand) []hardware.RowSet {
	var sets []hardware.RowSet
	for i := range c.query {
		for h, q := range c.query[i] {
			set := hardware.RowSet{Sequence: i, Head: h}
			for range r.IntN(2 * q.Rows) {
				set.Rows = append(set.Rows, int32(r.IntN(q.Rows)))
			}
			sets = append(sets, set)
		}
	}
	return sets
}

// massOfRow is the result for one row of a set by definition.
type massOfRow struct {
	set, place int
	mass       []float64
	lse        float64
}

// rowMasses takes up to about eight rows of each set.
func (c *randomCase) rowMasses(sets []hardware.RowSet, size int) []massOfRow {
	var all []massOfRow
	for i, set := range sets {
		keys := c.problem.Sequences[set.Sequence].Key[0].Rows
		for k := 0; k < len(set.Rows); k += max(1, len(set.Rows)/8) {
			scores := c.scores(set.Sequence, set.Head, int(set.Rows[k]), false)
			w := massOfRow{i, k, make([]float64, (keys+size-1)/size), logSumExp(scores)}
			for n, x := range scores {
				if !math.IsInf(x, -1) {
					w.mass[n/size] += math.Exp(x - w.lse)
				}
			}
			all = append(all, w)
		}
	}
	return all
}

func TestPoolAgainstDefinition(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for seed := uint64(firstSeed); seed < firstSeed+60; seed++ {
			c := newCase(seed)
			s := c.prepare(t, b)
			size := 1 + int(seed%200)
			for _, query := range []bool{false, true} {
				every := 1
				if size%4 == 0 {
					every = 4
				}
				got, err := s.Pool(context.Background(), query, size, every)
				if err != nil {
					t.Fatal(c, err)
				}
				c.comparePool(t, query, size, every, got)
			}
			s.Close()
			if t.Failed() {
				t.Fatal(c)
			}
		}
	})
}

func (c *randomCase) comparePool(t *testing.T, query bool, size, every int, got []hardware.Pooled) {
	k := 0
	for i := range c.query {
		list, offset := c.key[i], 0
		if query {
			list, offset = c.query[i], c.problem.Sequences[i].Offset
		}
		step := every
		if offset%step != 0 {
			step = 1
		}
		for _, m := range list {
			if want := (offset+m.Rows-1)/size - offset/size + 1; got[k].Blocks != want || got[k].Dim != m.Cols {
				t.Fatalf("%d blocks of %d: want %d of %d", got[k].Blocks, got[k].Dim, want, m.Cols)
			}
			sums, counts := make([]float64, len(got[k].Data)), make([]float64, got[k].Blocks)
			for r := 0; r < m.Rows; r += step {
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

func TestDotsAgainstDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(firstSeed, 9))
	random := func(blocks, dim int) hardware.Pooled {
		p := hardware.Pooled{Blocks: blocks, Dim: dim, Data: make([]float32, blocks*dim)}
		for i := range p.Data {
			p.Data[i] = float32(r.NormFloat64())
		}
		return p
	}
	for range 50 {
		dim := 1 + r.IntN(256)
		a, b := random(r.IntN(20), dim), random(r.IntN(20), dim)
		for isa, backend := range backends(t) {
			got := backend.Dots(a, b)
			if len(got) != a.Blocks*b.Blocks {
				t.Fatalf("%s: %d products of %d rows and %d", isa, len(got), a.Blocks, b.Blocks)
			}
			for at, x := range got {
				want, size := 0.0, 0.0
				for k := range dim {
					y := float64(a.Data[at/b.Blocks*dim+k]) * float64(b.Data[at%b.Blocks*dim+k])
					want, size = want+y, size+math.Abs(y)
				}
				if !(math.Abs(float64(x)-want) <= 0x1p-23*float64(dim)*size+0x1p-24) {
					t.Fatalf("%s, dim %d: product %d is %g, want %g", isa, dim, at, x, want)
				}
			}
		}
	}
}

// Levels of tiles do not depend on the instruction set, but where a score lies on
// a threshold.
func TestLevelsAgainstSerial(t *testing.T) {
	r := rand.New(rand.NewPCG(firstSeed, 10))
	for range 60 {
		c := drawLevels(r)
		want := make([]uint8, c.Choices()*c.Rows*c.Columns)
		backends(t)["serial"].Levels(&c, want)
		for isa, backend := range backends(t) {
			got, off := make([]uint8, len(want)), 0
			backend.Levels(&c, got)
			for at, level := range got {
				d := int(level) - int(want[at])
				if d < -1 || d > 1 {
					t.Fatalf("%s: %d rows, %d columns, %d parts: level %d at %d, want %d", isa, c.Rows, c.Columns, c.Parts, level, at, want[at])
				}
				off += d * d
			}
			if off > 1+len(got)/200 {
				t.Errorf("%s: %d rows, %d columns, %d parts: %d of %d levels are others", isa, c.Rows, c.Columns, c.Parts, off, len(got))
			}
		}
	}
}

// drawLevels draws the tiles of a causal chunk, some with a window.
func drawLevels(r *rand.Rand) hardware.TileLevels {
	c := hardware.TileLevels{Rows: 1 + r.IntN(40), Parts: []int{0, 1, hardware.LevelParts}[r.IntN(3)], Weight: make([]float32, 2*r.IntN(6)+1)}
	first, window := r.IntN(100), 200
	if r.IntN(2) == 0 {
		window = 1 + r.IntN(30)
	}
	c.Columns = first + c.Rows
	for i := range c.Rows {
		c.Low, c.High = append(c.Low, int32(max(0, first+i-window))), append(c.High, int32(first+i+1))
		for range r.IntN(4) * min(c.Parts, 1) {
			c.Row, c.Part = append(c.Row, int32(i)), append(c.Part, int32(r.IntN(c.Parts)))
		}
	}
	for range c.Rows * c.Columns {
		c.Similarity = append(c.Similarity, float32(3*r.NormFloat64()))
	}
	for i := range c.Weight {
		d := float64(i - len(c.Weight)/2)
		c.Weight[i] = float32(math.Exp(-d * d / 8))
	}
	c.Mass = make([]float32, len(c.Row)*c.Columns+hardware.LevelRoom)
	for k, row := range c.Row {
		for j := c.Low[row]; j < c.High[row]; j++ {
			c.Mass[k*c.Columns+int(j)] = float32(math.Exp(2*r.NormFloat64()) / float64(c.Columns))
		}
	}
	for x := 1e-6; x < 1; x *= 1.0 + 0.02 + 0.2*float64(r.IntN(2)) {
		if len(c.Thresholds) < 254 {
			c.Thresholds = append(c.Thresholds, float32(x))
		}
	}
	return c
}
