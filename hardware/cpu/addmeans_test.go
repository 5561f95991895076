package cpu

import (
	"context"
	"math"
	"slices"
	"testing"
)

func TestAddMeansAgainstDefinition(t *testing.T) {
	outputs, lses := worst{}, worst{}
	for seed := uint64(firstSeed); seed < firstSeed+100; seed++ {
		c := scoredCase(seed)
		if c.masks == nil {
			continue
		}
		for isa, b := range backends(t) {
			s := c.prepare(t, b)
			if err := s.Attend(context.Background(), c.masks); err != nil {
				t.Fatal(c, err)
			}
			if err := s.AddMeans(context.Background(), c.masks); err != nil {
				t.Fatal(c, err)
			}
			s.Close()
			c.compareWithMeans(t, isa, outputs, lses)
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

// compareWithMeans checks some rows of each head. The means count beside what
// attend wrote, which was rounded to the output's dtype.
func (c *randomCase) compareWithMeans(t *testing.T, isa string, outputs, lses worst) {
	limit := c.budget(isa)
	for i := range c.query {
		for h, q := range c.query[i] {
			for row := 0; row < q.Rows; row += max(1, q.Rows/5) {
				want, lse := c.withMeans(i, h, row)
				got := c.out[i][h]
				lses.add(isa, compareLSE(t, isa, c.problem.Sequences[i].LSE[h][row], lse, limit))
				for j := range want {
					e := math.Abs(got.at(row, j) - want[j])
					outputs.add(isa, e)
					if !(e <= limit.output+2*outputUnit[got.Dtype]*math.Max(1, math.Abs(want[j]))*4) {
						t.Fatalf("%s: sequence %d, head %d, row %d: output %d is %g, want %g", isa, i, h, row, j, got.at(row, j), want[j])
					}
				}
			}
		}
	}
}

// withMeans is a row of output and its lse by definition.
func (c *randomCase) withMeans(sequence, head, row int) ([]float64, float64) {
	p := &c.problem
	q := &p.Sequences[sequence]
	out, lse := c.attendRow(sequence, head, row)
	if math.IsInf(lse, -1) {
		return out, lse
	}
	mask := &c.masks[sequence*len(q.Query)+head]
	size := mask.Size
	kv := head / (len(q.Query) / len(q.Key))
	position := (q.Offset + row) / size
	lastQuery := min((position+1)*size, q.Offset+q.Query[head].Rows) - 1
	kept := mask.Columns[mask.RowPtr[position-q.Offset/size]:mask.RowPtr[position-q.Offset/size+1]]
	logits, means := []float64{lse}, [][]float64{out}
	for j := range position {
		if slices.Contains(kept, int32(j)) || p.Window > 0 && int64(lastQuery-j*size) >= p.Window {
			continue
		}
		x := 0.0
		mean := make([]float64, len(out))
		for n := j * size; n < (j+1)*size; n++ {
			for d, y := range c.query[sequence][head].values[row] {
				x += y * c.key[sequence][kv].values[n][d] * p.Scale / float64(size)
			}
			for d, y := range c.value[sequence][kv].values[n] {
				mean[d] += y / float64(size)
			}
		}
		if p.Softcap > 0 {
			x = p.Softcap * math.Tanh(x/p.Softcap)
		}
		logits, means = append(logits, x+math.Log(float64(size))), append(means, mean)
	}
	all := logSumExp(logits)
	sum := make([]float64, len(out))
	for i, x := range logits {
		for d := range sum {
			sum[d] += math.Exp(x-all) * means[i][d]
		}
	}
	return sum, all
}
