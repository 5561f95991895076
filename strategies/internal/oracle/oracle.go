// Package oracle computes every operation of hardware.Backend in float64, one
// number after another, straight from its definition. Tests hold kernels and
// strategies against it.
package oracle

import (
	"context"
	"math"
	"runtime"
	"sync"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

// Backend is the float64 reference.
type Backend struct{}

var _ hardware.Backend = Backend{}

// New makes the reference backend.
func New() Backend { return Backend{} }

// Name is "oracle".
func (Backend) Name() string { return "oracle" }

// Prepare widens the matrices and rotates a copy of them for each band.
func (Backend) Prepare(_ context.Context, p *hardware.Problem) (hardware.Session, error) {
	s := &session{problem: p, sequences: make([]sequence, len(p.Sequences))}
	for i := range p.Sequences {
		s.sequences[i] = prepare(p, &p.Sequences[i])
	}
	return s, nil
}

// Dots multiplies each row of a with each of b.
func (Backend) Dots(a, b hardware.Pooled) []float32 {
	product := make([]float32, 0, a.Blocks*b.Blocks)
	for i := range a.Blocks {
		for j := range b.Blocks {
			sum := 0.0
			for k := range a.Dim {
				sum += float64(a.Data[i*a.Dim+k]) * float64(b.Data[j*a.Dim+k])
			}
			product = append(product, float32(sum))
		}
	}
	return product
}

// Levels scores tile by tile.
func (Backend) Levels(t *hardware.TileLevels, level []uint8) {
	for choice := range t.Choices() {
		for i := range t.Rows {
			low, high := int(t.Low[i]), int(t.High[i])
			similarity := t.Similarity[i*t.Columns:]
			sum := 0.0
			for _, x := range similarity[low:high] {
				sum += math.Exp(float64(x))
			}
			for j := low; j < high; j++ {
				score := math.Exp(float64(similarity[j])) / sum
				if t.Parts > 0 {
					score = probed(t, i, j, choice, score)
				}
				count := uint8(0)
				for _, threshold := range t.Thresholds {
					if score >= float64(threshold) {
						count++
					}
				}
				level[(choice*t.Rows+i)*t.Columns+j] = count
			}
		}
	}
}

// probed is the score of a tile by the probes of a choice and its probability.
func probed(t *hardware.TileLevels, i, j, choice int, probability float64) float64 {
	own, count, around, weight := 0.0, 0.0, 0.0, 0.0
	reach := len(t.Weight) / 2
	for k, row := range t.Row {
		distance := int(row) - i
		if distance < -reach || distance > reach || (t.Parts > 1 && int(t.Part[k]) == choice) {
			continue
		}
		mass := float64(t.Mass[k*t.Columns+j])
		if distance == 0 {
			own, count = own+mass, count+1
		}
		if j >= int(t.Low[row]) && j < int(t.High[row]) {
			w := float64(t.Weight[reach+distance])
			around, weight = around+w*mass, weight+w
		}
	}
	if weight > 0 {
		around /= weight
	}
	if count > 0 {
		own /= count
	} else {
		own = around
	}
	return (own + around + probability/2) / 2.5
}

type session struct {
	problem   *hardware.Problem
	sequences []sequence
}

// sequence holds the rows of a hardware.Sequence, by head and row; queries and
// keys also by band.
type sequence struct {
	*hardware.Sequence
	query, key [][][][]float64 // [band][head][row][dim]
	value      [][][]float64   // [kv head][row][dim]
}

func (s *session) Close() {}

func prepare(p *hardware.Problem, s *hardware.Sequence) sequence {
	out := sequence{Sequence: s, value: rows(s.Value)}
	query, key := rows(s.Query), rows(s.Key)
	if p.Positions == nil {
		out.query, out.key = [][][][]float64{query}, [][][][]float64{key}
		return out
	}
	for _, band := range p.Positions.Bands {
		out.query = append(out.query, rotate(p.Positions, query, s.Offset, band.Query))
		out.key = append(out.key, rotate(p.Positions, key, 0, band.Key))
	}
	return out
}

func rows(matrices []hardware.Matrix) [][][]float64 {
	out := make([][][]float64, len(matrices))
	for h, m := range matrices {
		out[h] = make([][]float64, m.Rows)
		for r := range out[h] {
			out[h][r] = make([]float64, m.Cols)
			dtype.Row(out[h][r], m, r)
		}
	}
	return out
}

// rotate takes rows from the rotation they arrive with to that of the rule.
func rotate(p *hardware.Positions, heads [][][]float64, offset int, rule hardware.Rule) [][][]float64 {
	out := make([][][]float64, len(heads))
	for h := range heads {
		out[h] = make([][]float64, len(heads[h]))
		for r, row := range heads[h] {
			at := int64(offset + r)
			out[h][r] = turn(p, row, float64(at), Position(rule, at))
		}
	}
	return out
}

func turn(p *hardware.Positions, row []float64, applied, wanted float64) []float64 {
	out := append([]float64(nil), row...)
	half := len(p.InvFreq)
	for f := range half {
		a, b := f, f+half
		if p.Interleaved {
			a, b = 2*f, 2*f+1
		}
		sin, cos := math.Sincos(p.InvFreq[f]*wanted - p.Applied[f]*applied)
		out[a], out[b] = row[a]*cos-row[b]*sin, row[b]*cos+row[a]*sin
	}
	return out
}

// Position is what a rule makes of true position i.
func Position(r hardware.Rule, i int64) float64 {
	if r.Modulo > 0 {
		i = i - r.Modulo*floorDiv(i, r.Modulo)
	}
	if r.Group > 1 {
		i = floorDiv(i, r.Group)
	}
	p := r.Scale*float64(i) + r.Offset
	if r.Limit > 0 {
		p = min(p, r.Limit)
	}
	return p
}

func floorDiv(a, b int64) int64 { return int64(math.Floor(float64(a) / float64(b))) }

func (s *session) band(m, n int64) int {
	if s.problem.Positions == nil {
		return 0
	}
	for i, b := range s.problem.Positions.Bands {
		chunk := max(b.Chunk, 1)
		d := floorDiv(m, chunk) - floorDiv(n, chunk)
		if b.Low <= d && d < b.High {
			return i
		}
	}
	panic("oracle: a pair of positions lies in no band")
}

func (s *session) visible(q *sequence, i, j int) bool {
	d := int64(q.Offset + i - j)
	return !(s.problem.Causal && d < 0) && !(s.problem.Window > 0 && d >= s.problem.Window)
}

// score is the logit of query row i and key row j, -Inf when it is not seen.
func (s *session) score(q *sequence, head, i, j int) float64 {
	if !s.visible(q, i, j) {
		return math.Inf(-1)
	}
	band := s.band(int64(q.Offset+i), int64(j))
	x := dot(q.query[band][head][i], q.key[band][head*len(q.Key)/len(q.Query)][j]) * s.problem.Scale
	if s.problem.Positions != nil {
		x *= s.problem.Positions.Scale
	}
	if s.problem.Softcap > 0 {
		x = s.problem.Softcap * math.Tanh(x/s.problem.Softcap)
	}
	return x
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

// softmax turns logits into weights in place and gives their log-sum-exp; extra
// joins the denominator without a weight.
func softmax(x []float64, extra float64) float64 {
	top := extra
	for _, v := range x {
		top = max(top, v)
	}
	if math.IsInf(top, -1) {
		clear(x)
		return top
	}
	sum := math.Exp(extra - top)
	for i, v := range x {
		x[i] = math.Exp(v - top)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
	return top + math.Log(sum)
}

// each runs do for every head of every sequence, on all processors.
func (s *session) each(ctx context.Context, do func(sequence, head int)) error {
	var wait sync.WaitGroup
	turns := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range s.sequences {
		for h := range s.sequences[i].Query {
			turns <- struct{}{}
			wait.Go(func() {
				defer func() { <-turns }()
				if ctx.Err() == nil {
					do(i, h)
				}
			})
		}
	}
	wait.Wait()
	return ctx.Err()
}
