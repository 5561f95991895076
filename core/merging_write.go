package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/trivium-ml/trivium/core/checkpoint"
)

// mergeBatch bounds the bytes of one output that one call to a strategy writes,
// and so how long it takes until a merge reports progress.
const mergeBatch = 128 << 20

// mergeParts bounds the message that names the places of a batch.
const mergeParts = 100_000

// write fills the outputs, all of them in one pass over the sources, and makes
// them visible one after the other.
func (m *merging) write(ctx context.Context, outputs []*output) (err error) {
	defer func() {
		for _, o := range outputs {
			if o.writer == nil {
				continue
			}
			// What stopped the merge is what the caller needs to know, not that
			// tidying up failed too.
			if left := m.leave(o.writer); err == nil {
				err = left
			}
		}
	}()
	for _, o := range outputs {
		if m.spec.Overwrite && !m.spec.Resume {
			if err := checkpoint.Discard(o.dir); err != nil {
				return err
			}
		}
		if o.writer, err = checkpoint.Create(o.plan, m.options(o)); err != nil {
			return err
		}
		o.sink = o.writer
	}
	if err := m.fill(ctx, outputs); err != nil {
		return err
	}
	for _, o := range outputs {
		if err := m.describe(o); err != nil {
			return err
		}
		if err := o.writer.Commit(); err != nil {
			return err
		}
		o.writer = nil
	}
	return nil
}

// leave lets go of a writer whose checkpoint was not committed. What is done
// stays for a resume that was asked for; else nothing stays.
func (m *merging) leave(w *checkpoint.Writer) error {
	if m.spec.Resume {
		return w.Close()
	}
	// After a commit has begun there is nothing to go back to, and the error
	// that stopped it has been told.
	if abort := w.Abort(); !errors.Is(abort, checkpoint.ErrInProgress) {
		return abort
	}
	return nil
}

// fill merges the tensors that are not complete yet, a batch at a time.
func (m *merging) fill(ctx context.Context, outputs []*output) error {
	f := filling{merging: m, outputs: outputs, tensors: make([]map[string]*checkpoint.Tensor, len(outputs))}
	for i, o := range outputs {
		f.tensors[i] = make(map[string]*checkpoint.Tensor, len(m.rows))
		for _, t := range o.sink.Tensors() {
			f.tensors[i][t.Name] = t
			f.total += t.Size
		}
	}
	f.uncached = crowd(f.total, availableMemory())
	for _, t := range outputs[0].sink.Tensors() {
		if err := f.add(ctx, t); err != nil {
			return err
		}
	}
	return f.flush(ctx)
}

// filling is the tensors of some outputs on their way to the strategy.
type filling struct {
	*merging
	outputs     []*output
	tensors     []map[string]*checkpoint.Tensor // of each output, by name
	batch       []string
	size        int64 // of the batch, in the first output
	parts       int   // of its tensors in all sources
	done, total int64 // bytes of all outputs
	uncached    bool
}

// add takes a tensor into the batch, unless every output has it already.
func (f *filling) add(ctx context.Context, t *checkpoint.Tensor) error {
	missing := 0
	for i, o := range f.outputs {
		if !o.sink.Completed(t.Name) {
			missing++
			continue
		}
		if err := o.resumed(t.Name, o.sink.Note(t.Name)); err != nil {
			return err
		}
		f.done += f.tensors[i][t.Name].Size
	}
	if missing == 0 {
		return nil
	}
	f.batch, f.size = append(f.batch, t.Name), f.size+t.Size
	for _, source := range f.rows[t.Name].Tensors {
		f.parts += source.Parts()
	}
	if f.size < mergeBatch && f.parts < mergeParts {
		return nil
	}
	return f.flush(ctx)
}

// resumed takes up what an earlier run has noted of a tensor.
func (o *output) resumed(name, note string) error {
	o.report.Resumed++
	if note == "" {
		return nil
	}
	r := TensorReport{Name: name, Policy: "merged"}
	if err := json.Unmarshal([]byte(note), &r.NonFinite); err != nil {
		return Errorf(ErrInternal, "journal: note on %q: %w", name, err)
	}
	o.report.NonFinite = append(o.report.NonFinite, r)
	return nil
}

func (f *filling) flush(ctx context.Context) error {
	if len(f.batch) == 0 {
		return nil
	}
	reports, err := f.merge(ctx)
	if err != nil {
		return err
	}
	for i, name := range f.batch {
		for k, o := range f.outputs {
			t := f.tensors[k][name]
			if o.sink.Completed(name) {
				continue // written again with the same bytes, for the sake of the others
			}
			if err := o.sink.DoneWith(t, o.account(reports[i])); err != nil {
				return err
			}
			o.report.Bytes += t.Size
			f.done += t.Size
		}
	}
	f.batch, f.size, f.parts = f.batch[:0], 0, 0
	if f.spec.Progress != nil {
		f.spec.Progress(f.done, f.total)
	}
	return nil
}

// account adds a tensor to the report and gives the note for the journal.
func (o *output) account(r TensorReport) string {
	if !slices.ContainsFunc(r.NonFinite, func(n int64) bool { return n > 0 }) {
		return ""
	}
	o.report.NonFinite = append(o.report.NonFinite, r)
	note, err := json.Marshal(r.NonFinite)
	if err != nil {
		panic(err) // integers always encode
	}
	return string(note)
}

// merge calls the strategy with the batch. The reports are in its order.
func (f *filling) merge(ctx context.Context) ([]TensorReport, error) {
	req := &MergeRequest{Sources: len(f.spec.Sources), Steps: f.spec.Steps, Float64: f.spec.Float64,
		AllowNonFinite: f.spec.AllowNonFinite, Uncached: f.uncached, Threads: f.spec.Threads, Params: f.outputs[0].params}
	for _, o := range f.outputs {
		if o.weights != nil {
			req.Weights = append(req.Weights, o.weights)
		}
	}
	for _, name := range f.batch {
		req.Tensors = append(req.Tensors, f.operands(name))
	}
	response, err := f.strategy.Merge(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(response.Tensors) != len(f.batch) {
		return nil, Errorf(ErrInternal, "reports on %d tensors: want one for each of %d", len(response.Tensors), len(f.batch))
	}
	for _, o := range f.outputs {
		o.report.Backend = response.Backend
		for _, note := range response.Notes {
			if !slices.Contains(o.report.Warnings, note) {
				o.report.Warnings = append(o.report.Warnings, note)
			}
		}
	}
	return response.Tensors, nil
}

func (f *filling) operands(name string) MergeTensor {
	row := f.rows[name]
	mt := MergeTensor{Name: name, Shape: row.Tensors[0].Shape}
	for i, t := range row.Tensors {
		if i == len(f.spec.Sources) {
			base := operand(t, false)
			mt.Base = &base
		} else {
			mt.Inputs = append(mt.Inputs, operand(t, false))
		}
		for _, o := range f.outputs {
			o.report.BytesRead += t.Size
		}
	}
	for k := range f.outputs {
		mt.Outputs = append(mt.Outputs, operand(f.tensors[k][name], true))
	}
	return mt
}

func operand(t *checkpoint.Tensor, writable bool) MergeOperand {
	dtype, ok := t.Dtype.Numeric()
	if !ok {
		panic(fmt.Sprintf("operand of %s: checkDtypes has let it pass", t.Dtype))
	}
	return MergeOperand{Dtype: dtype, Extent: t.Extent(writable), Path: t.File.Path}
}
