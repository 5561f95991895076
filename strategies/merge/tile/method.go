package tile

import (
	"context"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// Method plans the merge of one tensor, after looking at all of it if it must.
type Method func(ctx context.Context, t *Tensor) (*Plan, error)

// Plan is how each tile of a tensor is merged.
type Plan struct {
	// Weights are of the sources and then of the base, if there is one; nil:
	// Sparse is used, or else Combine.
	Weights []float64
	// Sparse is the sum of what is left of the differences from the base.
	Sparse *hardware.SparseSum
	// Combine writes the merged numbers of a tile. Tiles are combined several
	// at a time, in any order.
	Combine func(v *Values, out []float32)
}

// Base says whether a method works on differences from a base checkpoint.
type Base int

// Whether a base is refused, taken or needed.
const (
	NoBase Base = iota
	OptionalBase
	NeedsBase
)

// Method makes a merge strategy of a method.
func (r *Runner) Method(info core.Info, base Base, plan Method) core.MergeStrategy {
	info = complete(info)
	info.Notes = append(info.Notes, "Integers and buffers are those of the newest source. NaN and Inf are refused unless allowed.")
	return &method{runner: r, info: info, base: base, plan: plan}
}

type method struct {
	runner *Runner
	info   core.Info
	base   Base
	plan   Method
}

func (m *method) Info() core.Info { return m.info }

func (m *method) Merge(ctx context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	params, err := m.info.Validate(req.Params, 0)
	if err != nil {
		return nil, err
	}
	if req.Weights != nil {
		return nil, core.Invalid(m.info.ID(), "it is not a linear method and takes no weights")
	}
	b := newBatch(m.runner, m.info.ID(), req)
	for i := range req.Tensors {
		t := &req.Tensors[i]
		if err := m.check(b, t); err != nil {
			return nil, err
		}
		if err := m.mergeTensor(ctx, b, i, params); err != nil {
			return nil, err
		}
	}
	return b.response(), nil
}

func (m *method) check(b *batch, t *core.MergeTensor) error {
	if err := b.check(t); err != nil {
		return err
	}
	if len(t.Outputs) != 1 {
		return core.Invalid(m.info.ID(), "tensor %q has %d outputs: want one", t.Name, len(t.Outputs))
	}
	if t.Base == nil && m.base == NeedsBase {
		return core.Invalid(m.info.ID(), "no base: it merges differences from one").WithHint("pass base=")
	}
	if t.Base != nil && m.base == NoBase {
		return core.Invalid(m.info.ID(), "a base is given, and it uses none").WithHint("leave base= out")
	}
	return nil
}

func (m *method) mergeTensor(ctx context.Context, b *batch, index int, params core.Params) error {
	t := newTensor(b, index, params)
	if t.Len == 0 {
		return nil
	}
	if copied(t.merge) {
		return each(ctx, b.req.Threads, len(t.jobs), func(i int) error { return b.copy(t.jobs[i]) })
	}
	// A tensor is walked over several times: its pages are looked up once.
	whole, err := b.mapTile(t.operands, job{tensor: index, count: t.Len})
	if err != nil {
		return err
	}
	defer whole.close()
	t.mapped = whole
	plan, err := m.plan(ctx, t)
	if err != nil {
		return err
	}
	jobs := t.jobs
	if plan.Combine == nil {
		jobs = t.portions()
	}
	return each(ctx, b.req.Threads, len(jobs), func(i int) error {
		switch {
		case plan.Weights != nil:
			return b.sumOf(ctx, whole.view(jobs[i]), jobs[i], [][]float64{plan.Weights})
		case plan.Sparse != nil:
			return t.sparse(ctx, jobs[i], *plan.Sparse)
		}
		return t.combine(ctx, i, plan.Combine)
	})
}

// Tensor is one tensor while it is merged.
type Tensor struct {
	Name    string
	Sources int
	HasBase bool
	Params  core.Params
	Len     int64 // elements
	Row     int   // elements of the last axis

	batch    *batch
	merge    *core.MergeTensor
	operands []core.MergeOperand // the sources and then the base
	mapped   *mapped             // all of the operands
	jobs     []job
	free     chan *Values
}

// scanned is about the number of elements of a tile whose numbers are widened.
const scanned = 256 << 10

func newTensor(b *batch, index int, params core.Params) *Tensor {
	mt := &b.req.Tensors[index]
	t := &Tensor{Name: mt.Name, Sources: len(mt.Inputs), HasBase: mt.Base != nil, Params: params, Len: length(mt.Shape), Row: 1,
		batch: b, merge: mt, operands: mt.Inputs}
	if mt.Base != nil {
		t.operands = append(mt.Inputs[:len(mt.Inputs):len(mt.Inputs)], *mt.Base)
	}
	if n := len(mt.Shape); n > 0 {
		t.Row = int(max(1, mt.Shape[n-1]))
	}
	// Whole rows to a tile, for methods that rank within rows.
	count := int64(max(1, scanned/t.Row) * t.Row)
	for start := int64(0); start < t.Len; start += count {
		t.jobs = append(t.jobs, job{tensor: index, start: start, count: min(count, t.Len-start)})
	}
	t.free = make(chan *Values, 64)
	return t
}

// Tiles is the number of tiles.
func (t *Tensor) Tiles() int { return len(t.jobs) }

// Values are the numbers of one tile, borrowed.
type Values struct {
	Tile    int
	First   int64       // index of the first element in the tensor
	Sources [][]float32 // oldest first
	Base    []float32   // nil: there is none
}

// Delta is how far element i of a source is from the base.
func (v *Values) Delta(source, i int) float64 {
	return float64(v.Sources[source][i]) - float64(v.Base[i])
}

// Len is the number of elements.
func (v *Values) Len() int { return len(v.Sources[0]) }

// Scan visits every tile, several at a time and in any order.
func (t *Tensor) Scan(ctx context.Context, visit func(v *Values)) error {
	return each(ctx, t.batch.req.Threads, len(t.jobs), func(i int) error {
		v, nonFinite, err := t.load(ctx, i)
		if err != nil {
			return err
		}
		defer t.put(v)
		if err := t.batch.refuse(t.jobs[i], nonFinite); err != nil {
			return err
		}
		visit(v)
		return nil
	})
}

// combine merges one tile by a function.
func (t *Tensor) combine(ctx context.Context, i int, combine func(v *Values, out []float32)) error {
	v, nonFinite, err := t.load(ctx, i)
	if err != nil {
		return err
	}
	defer t.put(v)
	if err := t.batch.count(t.jobs[i], nonFinite); err != nil {
		return err
	}
	out := make([]float32, t.jobs[i].count)
	combine(v, out)
	return t.batch.store(t.merge.Outputs, t.jobs[i].start, t.jobs[i].count, func(to []hardware.Vector) error {
		_, err := t.batch.runner.backend.WeightedSum(ctx, to, []hardware.Vector{floats(out)}, [][]float64{{1}}, false, 1)
		return err
	})
}

// load widens one tile to float32 and counts the NaN and Inf of each source.
func (t *Tensor) load(ctx context.Context, i int) (*Values, []int64, error) {
	in := t.mapped.part(t.jobs[i].start, t.jobs[i].count)
	v := t.get(t.jobs[i].count)
	v.Tile, v.First = i, t.jobs[i].start
	lists := v.Sources
	if t.HasBase {
		lists = append(lists[:len(lists):len(lists)], v.Base)
	}
	nonFinite := make([]int64, len(lists))
	for s, list := range lists {
		n, err := t.batch.runner.backend.WeightedSum(ctx, []hardware.Vector{floats(list)}, in[s:s+1], [][]float64{{1}}, false, 1)
		if err != nil {
			t.put(v)
			return nil, nil, err
		}
		nonFinite[s] = n[0]
	}
	return v, nonFinite, nil
}

func floats(list []float32) hardware.Vector {
	return hardware.Vector{Data: unsafe.Pointer(&list[0]), Dtype: hardware.VectorFloat32, Len: int64(len(list))}
}

// get takes a tile's memory from those not in use, or makes it.
func (t *Tensor) get(count int64) *Values {
	var v *Values
	select {
	case v = <-t.free:
	default:
		v = &Values{Sources: make([][]float32, t.Sources)}
	}
	for s := range v.Sources {
		v.Sources[s] = resized(v.Sources[s], count)
	}
	if t.HasBase {
		v.Base = resized(v.Base, count)
	}
	return v
}

func resized(list []float32, count int64) []float32 {
	if int64(cap(list)) < count {
		return make([]float32, count)
	}
	return list[:count]
}

func (t *Tensor) put(v *Values) {
	select {
	case t.free <- v:
	default:
	}
}
