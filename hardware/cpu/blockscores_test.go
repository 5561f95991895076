package cpu

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/hardware"
)

// scoredCase is a causal case of no bands.
func scoredCase(seed uint64) *randomCase {
	c := newCase(seed)
	c.problem.Causal, c.problem.Positions = true, nil
	for i := range c.problem.Sequences { // queries of causal sequences have keys
		for h := range c.key[i] {
			if c.key[i][h].Rows < c.problem.Sequences[i].Offset+c.query[i][0].Rows {
				return scoredCase(seed + 100000)
			}
		}
	}
	return c
}

func TestSquareMassAgainstDefinition(t *testing.T) {
	testBlockScores(t, func(s hardware.Session, c *randomCase, stride, size int) ([]hardware.BlockScores, error) {
		return s.SquareMass(context.Background(), stride, size, c.problem.Scale/float64(stride))
	}, (*randomCase).squareMass)
}

func TestMeanScoresAgainstDefinition(t *testing.T) {
	testBlockScores(t, func(s hardware.Session, _ *randomCase, _, size int) ([]hardware.BlockScores, error) {
		return s.MeanScores(context.Background(), size)
	}, (*randomCase).meanScores)
}

func testBlockScores(t *testing.T, run func(s hardware.Session, c *randomCase, stride, size int) ([]hardware.BlockScores, error),
	define func(c *randomCase, sequence, head, stride, size, block int) []float64) {
	errors := worst{}
	for seed := uint64(firstSeed); seed < firstSeed+100; seed++ {
		c := scoredCase(seed)
		r := rand.New(rand.NewPCG(seed, 3))
		size := 16 * (1 + r.IntN(16))
		stride := pick(r, 1, 2, 4, 8, 16)
		results := map[string][]hardware.BlockScores{}
		for isa, b := range backends(t) {
			s := c.prepare(t, b)
			got, err := run(s, c, stride, size)
			if err != nil {
				t.Fatal(c, err)
			}
			s.Close()
			results[isa] = got
		}
		heads := len(c.query[0])
		for slot := range results["serial"] {
			q := &c.problem.Sequences[slot/heads]
			blocks := blockCount(q.Offset, q.Query[0].Rows, size)
			for block := 0; block < blocks; block += max(1, blocks/4) {
				want := define(c, slot/heads, slot%heads, stride, size, block)
				for isa, got := range results {
					compareScores(t, isa, got[slot].Row(block), want, c.scored(isa), errors)
				}
			}
		}
		if t.Failed() {
			t.Fatalf("stride %d, block %d: %v", stride, size, c)
		}
	}
	t.Logf("largest errors, in units of the largest score, %v, seeds from %d", errors, firstSeed)
	if n := live.Load(); n != 0 {
		t.Errorf("%d bytes of C memory not released", n)
	}
}

func compareScores(t *testing.T, isa string, got []float32, want []float64, limit budget, errors worst) {
	t.Helper()
	unit := 1.0
	for _, w := range want {
		unit = max(unit, w)
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d key blocks, want %d", isa, len(got), len(want))
	}
	for j, w := range want {
		e := math.Abs(float64(got[j])-w) / unit
		errors.add(isa, e)
		if !(e <= limit.probability) {
			t.Errorf("%s: key block %d: %g, want %g", isa, j, got[j], w)
		}
	}
}

// squareMass is a row of the result by definition.
func (c *randomCase) squareMass(sequence, head, stride, size, block int) []float64 {
	p := &c.problem
	q := &p.Sequences[sequence]
	query, key := c.query[sequence][head], c.key[sequence][head/(len(q.Query)/len(q.Key))]
	mass := make([]float64, (key.Rows+size-1)/size)
	position := floorDiv(q.Offset, size) + block
	for r := position * size / stride; r < (position+1)*size/stride; r++ {
		if r*stride+stride <= q.Offset || r*stride >= q.Offset+query.Rows {
			continue
		}
		scores := make([]float64, min(r+1, (key.Rows+stride-1)/stride))
		for n := range scores {
			if p.Window > 0 && int64((r-n)*stride-stride+1) >= p.Window {
				scores[n] = math.Inf(-1)
				continue
			}
			for t := range stride {
				i, j := r*stride+stride-1-t-q.Offset, n*stride+t
				if i < 0 || i >= query.Rows || j >= key.Rows {
					continue
				}
				for d, x := range query.values[i] {
					scores[n] += x * key.values[j][d] * p.Scale / float64(stride)
				}
			}
		}
		lse := logSumExp(scores)
		for n, x := range scores {
			if !math.IsInf(x, -1) {
				mass[n*stride/size] += math.Exp(x - lse)
			}
		}
	}
	return mass
}

// meanScores is a row of the result by definition.
func (c *randomCase) meanScores(sequence, head, _, size, block int) []float64 {
	p := &c.problem
	q := &p.Sequences[sequence]
	query, key := c.query[sequence][head], c.key[sequence][head/(len(q.Query)/len(q.Key))]
	position := floorDiv(q.Offset, size) + block
	scores := make([]float64, (key.Rows+size-1)/size)
	low := 0
	if p.Window > 0 {
		low = max(0, position*size-int(p.Window)+1) / size
	}
	means := make([][]float64, position)
	for j := low; j < position; j++ {
		means[j] = make([]float64, key.Cols)
		for n := j * size; n < (j+1)*size; n++ {
			for d, y := range key.values[n] {
				means[j][d] += y / float64(size)
			}
		}
	}
	var logits [][]float64
	top := math.Inf(-1)
	for m := max(position*size, q.Offset); m < min((position+1)*size, q.Offset+query.Rows); m++ {
		var row []float64
		for j := low; j < position; j++ {
			x := 0.0
			for d, y := range query.values[m-q.Offset] {
				x += y * means[j][d] * p.Scale
			}
			if p.Softcap > 0 {
				x = p.Softcap * math.Tanh(x/p.Softcap)
			}
			row = append(row, x)
		}
		logits = append(logits, row)
		top = max(top, slices.Max(append(row, top)))
	}
	for _, row := range logits {
		for j, x := range row {
			scores[low+j] += math.Exp(x - top)
		}
	}
	return scores
}
