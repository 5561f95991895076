package tile

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// Method plans the merge of one tensor, after looking at all of it if it must.
type Method func(ctx context.Context, t *Tensor) (*Plan, error)

// Plan is how each tile of a tensor is merged: one of these.
type Plan struct {
	// Weights are of the sources and then of the base, if there is one.
	Weights []float64
	// Sparse is the sum of what is left of the differences from the base.
	Sparse *hardware.SparseSum
	// Ranked is the sum of what a draw leaves of them by their rank in a row.
	Ranked *hardware.RankedSum
	// Majority is the mean of those of the majority's sign, where they vary.
	Majority *Majority
}

// Majority is the weights of sources where their variance is at least Limit.
type Majority struct {
	Limit   float32
	Weights []float64
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
		if err := m.check(b, &req.Tensors[i]); err != nil {
			return nil, err
		}
	}
	err = each(ctx, b.tensorsAtOnce(), len(req.Tensors), func(i int) error { return m.mergeTensor(ctx, b, i, params) })
	if err != nil {
		return nil, err
	}
	return b.response(), nil
}

// tensorsAtOnce is two where the process may use all its threads: what waits for
// the last tile of one tensor works on the next.
func (b *batch) tensorsAtOnce() int {
	if b.req.Threads == 0 {
		return 2
	}
	return 1
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
	whole, err := b.mapIn(&mapped{}, t.operands, job{tensor: index, count: t.Len})
	if err != nil {
		return err
	}
	defer whole.close()
	t.mapped = whole
	plan, err := m.plan(ctx, t)
	if err != nil {
		return err
	}
	return t.write(ctx, plan)
}

// write merges the tensor as planned. Tiles are merged several at a time, in any order.
func (t *Tensor) write(ctx context.Context, plan *Plan) error {
	jobs, backend := t.portions(), t.batch.runner.backend
	if plan.Ranked != nil {
		jobs = t.rows()
	}
	return each(ctx, t.batch.req.Threads, len(jobs), func(i int) error {
		j := jobs[i]
		if plan.Weights != nil {
			return t.batch.sumOf(ctx, t.mapped.view(j), j, [][]float64{plan.Weights})
		}
		return t.overBase(j, func(out hardware.Vector, d hardware.Differences) ([]int64, error) {
			switch {
			case plan.Sparse != nil:
				sum := *plan.Sparse
				sum.Element = j.start
				return backend.Sparse(ctx, out, d, &sum)
			case plan.Ranked != nil:
				sum := *plan.Ranked
				sum.Element = j.start
				return backend.Ranked(ctx, out, d, &sum)
			}
			return backend.Majority(ctx, out, d, plan.Majority.Limit, plan.Majority.Weights)
		})
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
	index    int
	jobs     []job // whole rows
}

// squared is about the number of elements of a tile whose squares are added up.
const squared = 256 << 10

func newTensor(b *batch, index int, params core.Params) *Tensor {
	mt := &b.req.Tensors[index]
	t := &Tensor{Name: mt.Name, Sources: len(mt.Inputs), HasBase: mt.Base != nil, Params: params, Len: length(mt.Shape), Row: 1,
		batch: b, index: index, merge: mt, operands: mt.Inputs}
	if mt.Base != nil {
		t.operands = append(mt.Inputs[:len(mt.Inputs):len(mt.Inputs)], *mt.Base)
	}
	if n := len(mt.Shape); n > 0 {
		t.Row = int(max(1, mt.Shape[n-1]))
	}
	t.jobs = t.cut(int64(max(1, squared/t.Row) * t.Row))
	return t
}
