package cpu

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/hardware"
)

// spoilt says of each kv head of a sequence which keys have a value that is not finite.
type spoilt [][][]bool

// spoil makes up to three values of each kv head infinite or NaN.
func (c *randomCase) spoil(r *rand.Rand) spoilt {
	var all spoilt
	for i := range c.value {
		var heads [][]bool
		for _, v := range c.value[i] {
			bad := make([]bool, v.Rows)
			for range 1 + r.IntN(3) {
				n := r.IntN(v.Rows)
				bad[n] = true
				c.storeBits(v, n, r.IntN(v.Cols), r.IntN(3))
			}
			heads = append(heads, bad)
		}
		all = append(all, heads)
	}
	return all
}

// storeBits writes NaN, infinity or minus infinity, and leaves the values that
// the definition reads finite.
func (c *randomCase) storeBits(b *buffer, row, column, kind int) {
	at := b.raw[(row*b.Stride+column)*b.Dtype.Size():]
	bits := map[hardware.Dtype][3]uint32{
		hardware.Float32:  {0x7fc00000, 0x7f800000, 0xff800000},
		hardware.BFloat16: {0x7fc0, 0x7f80, 0xff80},
		hardware.Float16:  {0x7e00, 0x7c00, 0xfc00},
	}[b.Dtype][kind]
	for i := range b.Dtype.Size() {
		at[i] = byte(bits >> (8 * i))
	}
}

// A value that is not finite reaches the rows that see its key, and no other.
func TestValuesThatAreNotFinite(t *testing.T) {
	outputs, lses := worst{}, worst{}
	blind, seeing := 0, 0
	for seed := uint64(firstSeed); seed < firstSeed+cases; seed++ {
		c := newCase(seed)
		bad := c.spoil(rand.New(rand.NewPCG(seed, 2)))
		var clean, reached []sampledRow
		for _, w := range c.sample() {
			kv := w.head / (len(c.query[w.sequence]) / len(c.key[w.sequence]))
			touched := false
			for n, s := range c.scores(w.sequence, w.head, w.row, true) {
				touched = touched || bad[w.sequence][kv][n] && !math.IsInf(s, -1)
			}
			if touched {
				reached = append(reached, w)
			} else {
				clean = append(clean, w)
			}
		}
		blind, seeing = blind+len(clean), seeing+len(reached)
		for isa, b := range backends(t) {
			c.attend(t, b)
			c.compareRows(t, isa, clean, outputs, lses)
			for _, w := range reached {
				if !c.hasNonfinite(w) {
					t.Errorf("%s: sequence %d head %d row %d sees a value that is not finite: its output is", isa, w.sequence, w.head, w.row)
				}
			}
		}
		if t.Failed() {
			t.Fatal(c)
		}
	}
	if blind < 1000 || seeing < 1000 {
		t.Errorf("%d rows see no such value and %d do: want many of both", blind, seeing)
	}
}

// spoilScores makes some numbers of queries and keys infinite or NaN, also for the definition.
func (c *randomCase) spoilScores(r *rand.Rand) {
	numbers := []float64{math.NaN(), math.Inf(1), math.Inf(-1)}
	for _, heads := range append(slices.Clone(c.query), c.key...) {
		b := heads[r.IntN(len(heads))]
		n, j, kind := r.IntN(b.Rows), r.IntN(b.Cols), r.IntN(3)
		c.storeBits(b, n, j, kind)
		b.values[n][j] = numbers[kind]
	}
}

// A query or key that is not finite leaves its neighbours alone. A score of -Inf
// hides a key; rows with one of NaN or +Inf have no output, and say so.
func TestScoresThatAreNotFinite(t *testing.T) {
	outputs, lses := worst{}, worst{}
	finite, other := 0, 0
	for seed := uint64(firstSeed); seed < firstSeed+cases; seed++ {
		c := newCase(seed)
		c.problem.Positions, c.problem.Softcap = nil, 0
		c.spoilScores(rand.New(rand.NewPCG(seed, 3)))
		var clean, unknown []sampledRow
		for _, w := range c.sample() {
			if math.IsNaN(w.lse) {
				unknown = append(unknown, w)
			} else if !math.IsInf(w.lse, 0) {
				clean = append(clean, w)
			}
		}
		finite, other = finite+len(clean), other+len(unknown)
		for isa, b := range backends(t) {
			c.attend(t, b)
			c.compareRows(t, isa, clean, outputs, lses)
			for _, w := range unknown {
				if !c.hasNonfinite(w) || !math.IsNaN(float64(c.problem.Sequences[w.sequence].LSE[w.head][w.row])) {
					t.Errorf("%s: sequence %d head %d row %d sees a score of NaN or +Inf: want that of its output and lse", isa, w.sequence, w.head, w.row)
				}
			}
		}
		if t.Failed() {
			t.Fatal(c)
		}
	}
	if finite < 1000 || other < 100 {
		t.Errorf("%d rows are finite and %d are not: want many of both", finite, other)
	}
}

// Numbers whose nearest bfloat16 is infinite are finite all the same.
func TestHugeNumbers(t *testing.T) {
	const huge, want = 0x1.ffcp127, 64 * 0x1p-131 * 0x1.ffcp127
	for isa, b := range backends(t) {
		c := denseCase(64, 1, 64)
		c.problem.Precision, c.problem.Scale = hardware.High, 0x1p-11
		for _, row := range []struct {
			b *buffer
			x float64
		}{{c.query[0][0], 0x1p-120}, {c.key[0][0], huge}, {c.value[0][0], -huge}} {
			for j := range row.b.Cols {
				row.b.values[0][j] = row.b.store(0, j, row.x)
			}
		}
		c.attend(t, b)
		out, lse := c.out[0][0].at(0, 63), c.problem.Sequences[0].LSE[0][0]
		if !(math.Abs(out/-huge-1) < 0x1p-15) || !(math.Abs(float64(lse)-want) < 1e-3) {
			t.Errorf("%s: output %g and lse %g of one key: want %g and %g", isa, out, lse, -huge, want)
		}
	}
}

func (c *randomCase) hasNonfinite(w sampledRow) bool {
	for j := range w.out {
		if x := c.out[w.sequence][w.head].at(w.row, j); math.IsNaN(x) || math.IsInf(x, 0) {
			return true
		}
	}
	return false
}
