package cpu

import (
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

// The definition, spelled out in float64: a row of scores of every key.

// scores of a query row; -Inf for keys that it does not see. Keys of blocks
// that the mask drops are not seen when masked is set.
func (c *randomCase) scores(sequence, head, row int, masked bool) []float64 {
	p := &c.problem
	q := &p.Sequences[sequence]
	kv := head / (len(q.Query) / len(q.Key))
	keys := c.key[sequence][kv]
	m := int64(q.Offset + row)
	scores := make([]float64, keys.Rows)
	for n := range scores {
		scores[n] = math.Inf(-1)
		if p.Causal && int64(n) > m || p.Window > 0 && m-int64(n) >= p.Window || masked && !c.kept(sequence, head, row, n) {
			continue
		}
		x, y := c.query[sequence][head].values[row], keys.values[n]
		scale := p.Scale
		if p.Positions != nil {
			b := bandOf(p.Positions, m, int64(n))
			x, y = turn(p.Positions, b.Query, x, m), turn(p.Positions, b.Key, y, int64(n))
			scale *= p.Positions.Scale
		}
		sum := 0.0
		for i := range x {
			sum += x[i] * y[i]
		}
		scores[n] = sum * scale
		if p.Softcap > 0 {
			scores[n] = p.Softcap * math.Tanh(scores[n]/p.Softcap)
		}
	}
	return scores
}

func (c *randomCase) kept(sequence, head, row, n int) bool {
	if c.masks == nil {
		return true
	}
	q := &c.problem.Sequences[sequence]
	mask := &c.masks[sequence*len(q.Query)+head]
	block := (q.Offset+row)/mask.Size - q.Offset/mask.Size
	for _, column := range mask.Columns[mask.RowPtr[block]:mask.RowPtr[block+1]] {
		if int(column) == n/mask.Size {
			return true
		}
	}
	return false
}

func bandOf(p *hardware.Positions, m, n int64) hardware.Band {
	for _, b := range p.Bands {
		d := m/b.Chunk - n/b.Chunk
		if b.Low <= d && d < b.High {
			return b
		}
	}
	panic("distance in no band")
}

func turn(p *hardware.Positions, r hardware.Rule, x []float64, m int64) []float64 {
	i := m
	if r.Modulo > 0 {
		i %= r.Modulo
	}
	if r.Group > 1 {
		i /= r.Group
	}
	to := r.Scale*float64(i) + r.Offset
	if r.Limit > 0 {
		to = min(to, r.Limit)
	}
	y := append([]float64(nil), x...)
	half := len(p.InvFreq)
	for i := range half {
		a, b := i, i+half
		if p.Interleaved {
			a, b = 2*i, 2*i+1
		}
		sin, cos := math.Sincos(p.InvFreq[i]*to - p.Applied[i]*float64(m))
		y[a], y[b] = x[a]*cos-x[b]*sin, x[a]*sin+x[b]*cos
	}
	return y
}

func logSumExp(scores []float64) float64 {
	top, sum := math.Inf(-1), 0.0
	for _, s := range scores {
		top = max(top, s)
	}
	if math.IsInf(top, -1) {
		return top
	}
	for _, s := range scores {
		sum += math.Exp(s - top)
	}
	return top + math.Log(sum)
}

// attendRow is the output and lse of a row.
func (c *randomCase) attendRow(sequence, head, row int) ([]float64, float64) {
	q := &c.problem.Sequences[sequence]
	scores := c.scores(sequence, head, row, true)
	lse := logSumExp(scores)
	values := c.value[sequence][head/(len(q.Query)/len(q.Key))]
	out := make([]float64, values.Cols)
	if math.IsInf(lse, -1) {
		return out, lse
	}
	if c.problem.Sinks != nil {
		lse = logSumExp([]float64{lse, float64(c.problem.Sinks[head])})
	}
	for n, s := range scores {
		w := math.Exp(s - lse)
		for j := range out {
			out[j] += w * values.values[n][j]
		}
	}
	return out, lse
}
