package sdk

import (
	"context"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// Pair is a query and a key of one head, by their positions in the sequence.
type Pair struct {
	Sequence, Head int
	Query, Key     int
}

// tile is the side of the tiles in which density is counted.
const tile = 128

// AttendWhere computes attention over the pairs that keep says, pair by pair in
// plain Go: for trying out a rule, not for speed. It keeps to everything else
// that a request may ask: groups of heads, padding, packed sequences, chunks,
// window, softcap and sinks, in float32, bfloat16 and float16.
func AttendWhere(ctx context.Context, req *core.AttentionRequest, keep func(Pair) bool) (*core.AttentionResponse, error) {
	if !req.Position.IsPlain() {
		return nil, core.Errorf(core.ErrUnsupported, "position plan %s: this strategy attends to queries and keys as they are", req.Position.Strategy).
			WithHint("use position=None, or a strategy that only selects")
	}
	if req.ForceDense {
		keep = func(Pair) bool { return true }
	}
	w, err := newWhere(req, keep)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	w.blank()
	heads := req.Query.Dim(1)
	report := core.Report{Backend: "go", Threads: max(1, min(threads(req), heads))}
	kept, all := make([]int64, heads), make([]int64, heads)
	var group sync.WaitGroup
	for worker := range report.Threads {
		group.Go(func() {
			for h := worker; h < heads; h += report.Threads {
				for s, e := range w.extents {
					k, a := w.head(ctx, s, h, e)
					kept[h], all[h] = kept[h]+k, all[h]+a
				}
			}
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	tiles, total := int64(0), int64(0)
	for h := range heads {
		tiles, total = tiles+kept[h], total+all[h]
	}
	report.Density = float64(tiles) / float64(max(1, total))
	report.Times.Attend = float64(time.Since(began)) / float64(time.Millisecond)
	return &core.AttentionResponse{Report: report}, nil
}

func threads(req *core.AttentionRequest) int {
	if req.Threads > 0 {
		return req.Threads
	}
	return runtime.GOMAXPROCS(0)
}

// where is one call of AttendWhere.
type where struct {
	req           *core.AttentionRequest
	keep          func(Pair) bool
	q, k, v, o, l tensorRows
	extents       []core.SequenceExtent
	group, dim    int
}

func newWhere(req *core.AttentionRequest, keep func(Pair) bool) (*where, error) {
	w := &where{req: req, keep: keep, extents: req.Extents(), group: req.Query.Dim(1) / req.Key.Dim(1), dim: req.Query.Dim(3)}
	for _, x := range []struct {
		rows *tensorRows
		of   *tensor.Tensor
	}{{&w.q, req.Query}, {&w.k, req.Key}, {&w.v, req.Value}, {&w.o, req.Output}} {
		if !x.rows.open(x.of) {
			return nil, core.Errorf(core.ErrUnsupported, "dtype %v: want float32, bfloat16 or float16", x.of.Dtype())
		}
	}
	if req.LSE != nil {
		w.l.open(req.LSE)
	}
	return w, nil
}

// blank is what queries give that see nothing.
func (w *where) blank() {
	zero := make([]float64, w.dim)
	for b := range w.req.Query.Dim(0) {
		for h := range w.req.Query.Dim(1) {
			for i := range w.req.Query.Dim(2) {
				w.o.write(zero, b, h, i)
				if w.req.LSE != nil {
					w.l.write([]float64{math.Inf(-1)}, b, h, i)
				}
			}
		}
	}
}

// head attends for one head of one sequence. It counts tiles that hold a kept
// pair, and those that hold a visible one.
func (w *where) head(ctx context.Context, s, h int, e core.SequenceExtent) (kept, all int64) {
	keys := e.KeyEnd - e.KeyStart
	query, row, out := make([]float64, w.dim), make([]float64, w.dim), make([]float64, w.dim)
	scores := make([]float64, keys)
	touched, visible := make([]bool, keys/tile+1), make([]bool, keys/tile+1)
	for i := e.QueryStart; i < e.QueryEnd && ctx.Err() == nil; i++ {
		position := e.Offset + i - e.QueryStart
		w.q.read(query, e.Batch, h, i)
		most := math.Inf(-1)
		for j := range keys {
			scores[j] = math.Inf(-1)
			if !w.sees(position, j) {
				continue
			}
			visible[j/tile] = true
			if !w.keep(Pair{Sequence: s, Head: h, Query: position, Key: j}) {
				continue
			}
			touched[j/tile] = true
			w.k.read(row, e.Batch, h/w.group, e.KeyStart+j)
			scores[j] = w.score(query, row)
			most = math.Max(most, scores[j])
		}
		w.row(e, h, i, scores, most, row, out)
		if (position+1)%tile == 0 || i == e.QueryEnd-1 {
			kept, all = kept+drain(touched), all+drain(visible)
		}
	}
	return kept, all
}

// row writes the output of one query from its scores.
func (w *where) row(e core.SequenceExtent, h, i int, scores []float64, most float64, row, out []float64) {
	if math.IsInf(most, -1) {
		return // it sees nothing
	}
	sum := 0.0
	if w.req.Sinks != nil {
		most = math.Max(most, float64(w.req.Sinks[h]))
		sum = math.Exp(float64(w.req.Sinks[h]) - most)
	}
	clear(out)
	for j, score := range scores {
		if math.IsInf(score, -1) {
			continue
		}
		weight := math.Exp(score - most)
		sum += weight
		w.v.read(row, e.Batch, h/w.group, e.KeyStart+j)
		for d := range out {
			out[d] += weight * row[d]
		}
	}
	for d := range out {
		out[d] /= sum
	}
	w.o.write(out, e.Batch, h, i)
	if w.req.LSE != nil {
		w.l.write([]float64{most + math.Log(sum)}, e.Batch, h, i)
	}
}

func (w *where) sees(query, key int) bool {
	return (!w.req.Causal || key <= query) && (w.req.Window == 0 || int64(query-key) < w.req.Window)
}

func (w *where) score(query, key []float64) float64 {
	dot := 0.0
	for d := range query {
		dot += query[d] * key[d]
	}
	dot *= w.req.Scale
	if w.req.Softcap > 0 {
		dot = w.req.Softcap * math.Tanh(dot/w.req.Softcap)
	}
	return dot
}

// drain counts and clears.
func drain(marks []bool) int64 {
	n := int64(0)
	for i, marked := range marks {
		if marked {
			n++
		}
		marks[i] = false
	}
	return n
}
