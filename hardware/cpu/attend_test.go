package cpu

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/hardware"
)

// budget bounds the error of a result against float64: of outputs, for values
// drawn from the unit normal, beside half a unit in the last place of the output
// dtype; of lse; and of probabilities. A score that is off by e moves a weight
// by e relative, and an output by at most twice that times the largest value.
type budget struct{ output, lse, probability float64 }

// Budgets by family of arithmetic.
var (
	// float32 cosines and packed keys, the rest float64
	serialBudget = budget{3e-6, 3e-6, 3e-6}
	// float32 sums over head_dim and keys, scores below 40 in size, exp2 to 2e-7
	float32Budget = budget{2e-5, 2e-5, 2e-5}
	// weights rounded to bfloat16: 2^-9 of the largest value, 4.5
	bfloat16Budget = budget{1e-2, 2e-5, 2e-5}
	// products of halves of float32, each off by up to 2^-15 of the sum of |q||k|, which is
	// at most 15 here, and by a fiftieth of that on average; weights and values likewise
	halvesBudget = budget{6e-5, 6e-5, 6e-5}
	// rotated queries and keys rounded to bfloat16: each score off by up to 2^-8
	// of the sum of |q||k|, which is at most 15 here
	turnedBudget = budget{2.5e-1, 6e-2, 6e-2}
)

// kept is the budget of a sum of probabilities that are kept as float16 where
// inputs are bfloat16.
func (b budget) kept(probability float64) budget {
	if b.output >= bfloat16Budget.output {
		b.probability += 0x1p-12 * probability
	}
	return b
}

func (c *randomCase) budget(isa string) budget {
	switch {
	case isa == "serial":
		return serialBudget
	case isa == "amx" && c.query[0][0].Dtype == hardware.Float32 && c.problem.Precision == hardware.High:
		return halvesBudget
	case !slices.Contains([]string{"amx", "avx512bf16"}, isa) || c.query[0][0].Dtype != hardware.BFloat16:
		return float32Budget
	case c.problem.Positions == nil:
		return bfloat16Budget
	}
	return turnedBudget
}

// scored is the budget of scores without values: on AMX all that are not of
// bfloat16 are made of halves.
func (c *randomCase) scored(isa string) budget {
	if limit := c.budget(isa); isa != "amx" || limit != float32Budget {
		return limit
	}
	return halvesBudget
}

var outputUnit = map[hardware.Dtype]float64{hardware.Float32: 0x1p-24, hardware.BFloat16: 0x1p-8, hardware.Float16: 0x1p-11}

func eachISA(t *testing.T, f func(t *testing.T, isa string, b hardware.Backend)) {
	for _, isa := range Available() {
		t.Run(isa, func(t *testing.T) {
			b, err := Open(isa)
			if err != nil {
				t.Fatal(err)
			}
			f(t, isa, b)
			if n := live.Load(); n != 0 {
				t.Errorf("%d bytes of C memory not released", n)
			}
		})
	}
}

func (c *randomCase) attend(t *testing.T, b hardware.Backend) {
	t.Helper()
	s, err := b.Prepare(context.Background(), &c.problem)
	if err != nil {
		t.Fatal(c, err)
	}
	defer s.Close()
	if err := s.Attend(context.Background(), c.masks); err != nil {
		t.Fatal(c, err)
	}
}

const firstSeed, cases = 20260, 240

// backends opens every instruction set of this machine.
func backends(t *testing.T) map[string]hardware.Backend {
	t.Helper()
	all := map[string]hardware.Backend{}
	for _, isa := range Available() {
		b, err := Open(isa)
		if err != nil {
			t.Fatal(err)
		}
		all[isa] = b
	}
	return all
}

// worst is the largest error of each instruction set.
type worst map[string]float64

func (w worst) add(isa string, e float64) { w[isa] = max(w[isa], e) }

func TestAttendAgainstDefinition(t *testing.T) {
	outputs, lses := worst{}, worst{}
	for seed := uint64(firstSeed); seed < firstSeed+cases; seed++ {
		c := newCase(seed)
		want := c.sample()
		for isa, b := range backends(t) {
			c.attend(t, b)
			c.compareRows(t, isa, want, outputs, lses)
		}
		if t.Failed() {
			t.Fatal(c)
		}
	}
	t.Logf("largest errors of outputs %v, of lse %v, seeds from %d", outputs, lses, firstSeed)
	if n := live.Load(); n != 0 {
		t.Errorf("%d bytes of C memory not released", n)
	}
}

// Scores that rise along the keys move the maximum of every row, also within a
// tile of keys and after outputs were summed up.
func TestAttendToRisingScores(t *testing.T) {
	outputs, lses := worst{}, worst{}
	for seed := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, 2))
		dim := 32 * (1 + r.IntN(8))
		c := &randomCase{seed: seed}
		c.problem.Scale, c.problem.Causal = 1/math.Sqrt(float64(dim)), seed%2 == 0
		c.addSequence(r, hardware.BFloat16, 2, 1, dim, dim)
		key := c.key[0][0]
		for n, row := range key.values {
			for j, x := range row {
				row[j] = key.store(n, j, x*min(2.5, float64(n/24)/4))
			}
		}
		if seed%4 > 1 {
			c.addMasks(r, 2)
		}
		want := c.sample()
		for isa, b := range backends(t) {
			c.attend(t, b)
			c.compareRows(t, isa, want, outputs, lses)
		}
		if t.Failed() {
			t.Fatal(c)
		}
	}
	t.Logf("largest errors of outputs %v, of lse %v", outputs, lses)
}

// sampledRow is a row of the result by definition.
type sampledRow struct {
	sequence, head, row int
	out                 []float64
	lse                 float64
}

// sample takes up to eight rows of each head, first and last included.
func (c *randomCase) sample() []sampledRow {
	var rows []sampledRow
	for i := range c.query {
		for h := range c.query[i] {
			n := c.query[i][h].Rows
			for k := range min(n, 8) {
				row := k * (n - 1) / max(1, min(n, 8)-1)
				out, lse := c.attendRow(i, h, row)
				rows = append(rows, sampledRow{i, h, row, out, lse})
			}
		}
	}
	return rows
}

func (c *randomCase) compareRows(t *testing.T, isa string, rows []sampledRow, outputs, lses worst) {
	t.Helper()
	limit := c.budget(isa)
	for _, w := range rows {
		out := c.out[w.sequence][w.head]
		arithmetic := isa
		if isa == "amx" && out.Dtype == hardware.Float16 {
			arithmetic = "amx, halves of float16"
		} else if limit == halvesBudget {
			arithmetic = "amx, halves of float32"
		}
		for j := range w.out {
			got := out.at(w.row, j)
			e := math.Abs(got-w.out[j]) - outputUnit[out.Dtype]*math.Abs(w.out[j]) - 0x1p-25
			outputs.add(arithmetic, e)
			if !(e <= limit.output) {
				t.Errorf("%s: sequence %d head %d row %d column %d: %g, want %g", isa, w.sequence, w.head, w.row, j, got, w.out[j])
				return
			}
		}
		got := float64(c.problem.Sequences[w.sequence].LSE[w.head][w.row])
		if math.IsInf(w.lse, -1) && math.IsInf(got, -1) {
			continue
		}
		lses.add(arithmetic, math.Abs(got-w.lse))
		if !(math.Abs(got-w.lse) <= limit.lse) {
			t.Errorf("%s: sequence %d head %d row %d: lse %g, want %g", isa, w.sequence, w.head, w.row, got, w.lse)
			return
		}
	}
}

func TestAttendSameBytesForAnyThreads(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for seed := uint64(1); seed < 20; seed++ {
			c := newCase(seed)
			c.problem.Threads = 1
			c.attend(t, b)
			want := c.bytes()
			for _, threads := range []int{2, 3, 7} {
				c.problem.Threads = threads
				c.attend(t, b)
				if !bytes.Equal(want, c.bytes()) {
					t.Fatalf("%d threads give other bytes than one: %v", threads, c)
				}
			}
		}
	})
}

func (c *randomCase) bytes() []byte {
	var all []byte
	for i := range c.out {
		for h, o := range c.out[i] {
			all = append(all, o.raw...)
			for _, x := range c.problem.Sequences[i].LSE[h] {
				all = append(all, byte(math.Float32bits(x)), byte(math.Float32bits(x)>>8), byte(math.Float32bits(x)>>16), byte(math.Float32bits(x)>>24))
			}
		}
	}
	return all
}

func TestAttendWritesOnlyOutput(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for seed := uint64(100); seed < 125; seed++ {
			c := newCase(seed)
			c.attend(t, b)
			for i := range c.out {
				for _, o := range c.out[i] {
					gaps := slices.Clone(o.raw)
					for row := range o.Rows {
						first := row * o.Stride * o.Dtype.Size()
						for j := range o.Cols * o.Dtype.Size() {
							gaps[first+j] = 0xff
						}
					}
					if k := slices.IndexFunc(gaps, func(x byte) bool { return x != 0xff }); k >= 0 {
						t.Fatalf("byte %d between or after the rows was written: %v", k, c)
					}
				}
			}
		}
	})
}
