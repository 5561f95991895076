package core

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

// mergeBatch bounds the output bytes of one call to a strategy, and so how long
// it takes until a merge can be cancelled or reports progress.
const mergeBatch = 64 << 20

// Merge makes one checkpoint out of several. Nothing is visible in spec.Out
// until all of it is there; a killed merge leaves a journal that
// spec.Resume goes on from, to the same bytes.
func (e *Engine) Merge(ctx context.Context, spec *MergeSpec) (*MergeReport, error) {
	started := time.Now()
	if err := e.open(); err != nil {
		return nil, err
	}
	s, err := e.registry.Lookup(Merge, spec.Method)
	if err != nil {
		return nil, err
	}
	if err := spec.validate(s.Info()); err != nil {
		return nil, err
	}
	if spec.Params, err = s.Info().Validate(spec.Params, 0); err != nil {
		return nil, err
	}
	m := &merging{spec: spec, strategy: s.(MergeStrategy), report: MergeReport{
		Method: s.Info().ID(), Sources: spec.Sources, Out: spec.Out, Params: spec.Params, DryRun: spec.DryRun}}
	defer m.close()
	if err := m.run(ctx); err != nil {
		return nil, at(checkpointError(err), s.Info())
	}
	m.report.Seconds = time.Since(started).Seconds()
	for _, w := range m.report.Warnings {
		e.log.WithField(LogStrategy, s.Info().ID()).Warn(w)
	}
	return &m.report, nil
}

// merging is one merge under way.
type merging struct {
	spec     *MergeSpec
	strategy MergeStrategy
	report   MergeReport
	folders  []*checkpoint.Folder
	pairing  *checkpoint.Pairing
	rows     map[string]checkpoint.Row
}

func (m *merging) close() {
	for _, f := range m.folders {
		f.Close()
	}
}

func (m *merging) run(ctx context.Context) error {
	if err := m.read(); err != nil {
		return err
	}
	if err := m.weigh(ctx); err != nil {
		return err
	}
	plan, err := m.plan()
	if err != nil {
		return err
	}
	if m.report.Recipe, err = m.spec.recipe(m.folders); err != nil {
		return err
	}
	if m.spec.DryRun {
		_, err := checkpoint.Forecast(plan, m.spec.Out)
		return err
	}
	return m.write(ctx, plan)
}

// read opens the sources and pairs their tensors.
func (m *merging) read() error {
	dirs := m.spec.Sources
	if m.spec.Base != "" {
		dirs = append(slices.Clone(dirs), m.spec.Base)
	}
	for _, dir := range dirs {
		if folder, _ := filepath.Abs(dir); folder != "" {
			if out, _ := filepath.Abs(m.spec.Out); out == folder {
				return Invalid("", "the output folder %s is one of the sources", m.spec.Out).WithHint("write to another folder")
			}
		}
		folder, err := checkpoint.Open(dir)
		if err != nil {
			return err
		}
		m.folders = append(m.folders, folder)
	}
	var err error
	if m.pairing, err = checkpoint.Pair(m.folders); err != nil {
		return err
	}
	m.rows = make(map[string]checkpoint.Row, len(m.pairing.Rows))
	for _, row := range m.pairing.Rows {
		m.rows[row.Name] = row
	}
	m.warn()
	return m.checkDtypes()
}

// warn names what another tool would pass over in silence.
func (m *merging) warn() {
	for _, folder := range m.folders {
		for _, name := range folder.Unlisted {
			m.report.Warnings = append(m.report.Warnings, fmt.Sprintf("%s: %s is not part of the checkpoint", folder.Dir, name))
		}
	}
	for _, tie := range m.pairing.Ties {
		m.report.Warnings = append(m.report.Warnings,
			fmt.Sprintf("%s is tied to %s: only %s is written", tie.Name, tie.Of, tie.Of))
	}
	differences, err := checkpoint.CompareConfigs(m.spec.Sources)
	if err != nil {
		m.report.Warnings = append(m.report.Warnings, "configs not compared: "+err.Error())
	}
	for _, d := range differences {
		if !d.Benign {
			m.report.Warnings = append(m.report.Warnings, fmt.Sprintf("config.json: %s differs: %s; the newest is written", d.Key, d.Values))
		}
	}
}

func (m *merging) checkDtypes() error {
	for _, row := range m.pairing.Rows {
		for _, t := range row.Tensors {
			if _, ok := t.Dtype.Numeric(); !ok {
				return (&Error{Kind: ErrCheckpoint, Message: fmt.Sprintf("%s: tensor %q is %s, which cannot be merged", t.File.Path, t.Name, t.Dtype)}).
					WithHint("merge the checkpoint before it is quantised")
			}
		}
	}
	if m.spec.Dtype != tensor.Invalid || len(m.pairing.Dtypes) == 0 {
		return nil
	}
	first, other := m.pairing.Dtypes[0].Tensors[0], m.pairing.Dtypes[0].Tensors[0]
	for _, t := range m.pairing.Dtypes[0].Tensors {
		if t.Dtype != first.Dtype {
			other = t
		}
	}
	return Errorf(ErrCheckpoint, "tensor %q is %s in %s and %s in %s", first.Name, first.Dtype, first.File.Path, other.Dtype, other.File.Path).
		WithHint("pass dtype= to say what the merge should have")
}

// weigh asks a linear method for its weights.
func (m *merging) weigh(ctx context.Context) error {
	if m.spec.Weights != nil {
		m.report.Weights = m.spec.Weights
		return nil
	}
	weigher, ok := m.strategy.(Weigher)
	if !ok || !m.strategy.Info().Capabilities.Weights {
		return nil
	}
	weights, err := weigher.Weights(ctx, &WeightsRequest{Sources: len(m.spec.Sources), Steps: m.spec.Steps, Params: m.spec.Params})
	if err != nil {
		return err
	}
	if len(weights) != len(m.spec.Sources) {
		return Errorf(ErrInternal, "%d weights for %d sources", len(weights), len(m.spec.Sources))
	}
	m.report.Weights = weights
	return finite(m.strategy.Info(), "weights", weights)
}

// plan lays out the output, in the shards of the newest source if it keeps
// their dtypes.
func (m *merging) plan() (*checkpoint.Plan, error) {
	specs := make([]checkpoint.Spec, len(m.pairing.Rows))
	for i, row := range m.pairing.Rows {
		t := m.newest(row)
		specs[i] = checkpoint.Spec{Name: row.Name, Dtype: m.outputDtype(t), Shape: t.Shape}
	}
	if m.spec.ShardBytes == 0 && m.spec.Dtype == tensor.Invalid {
		return checkpoint.Like(specs, m.folders[len(m.spec.Sources)-1])
	}
	return checkpoint.Split(specs, m.spec.ShardBytes)
}

func (m *merging) newest(row checkpoint.Row) *checkpoint.Tensor {
	return row.Tensors[len(m.spec.Sources)-1]
}

func (m *merging) outputDtype(t *checkpoint.Tensor) checkpoint.Dtype {
	if n, _ := t.Dtype.Numeric(); m.spec.Dtype == tensor.Invalid || !n.IsFloat() {
		return t.Dtype
	}
	return checkpoint.Stored(m.spec.Dtype)
}

func (m *merging) write(ctx context.Context, plan *checkpoint.Plan) (err error) {
	w, err := checkpoint.Create(plan, checkpoint.Options{Dir: m.spec.Out, Recipe: m.report.Recipe,
		Overwrite: m.spec.Overwrite, Resume: m.spec.Resume})
	if err != nil {
		return err
	}
	defer func() {
		// What is done stays for a resume when there was one to ask for; bad input does not.
		if err != nil && !m.resumable(err) {
			_ = w.Abort()
		} else if err != nil {
			_ = w.Close()
		}
	}()
	if err := m.fill(ctx, w); err != nil {
		return err
	}
	if err := m.describe(w); err != nil {
		return err
	}
	return w.Commit()
}

// resumable says whether the same merge may do better next time.
func (m *merging) resumable(err error) bool {
	switch AsError(err).Kind {
	case ErrCancelled, ErrDeadlineExceeded, ErrPluginCrashed:
		return m.spec.Resume
	}
	return false
}

// fill merges the tensors that are not complete yet, a batch at a time.
func (m *merging) fill(ctx context.Context, w *checkpoint.Writer) error {
	var batch []*checkpoint.Tensor
	total, done, size := int64(0), int64(0), int64(0)
	for _, t := range w.Tensors() {
		total += t.Size
	}
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := m.mergeBatch(ctx, batch); err != nil {
			return err
		}
		for _, t := range batch {
			if err := w.Done(t); err != nil {
				return err
			}
		}
		done += size
		batch, size = batch[:0], 0
		if m.spec.Progress != nil {
			m.spec.Progress(done, total)
		}
		return nil
	}
	for _, t := range w.Tensors() {
		if w.Completed(t.Name) {
			m.report.Resumed++
			done += t.Size
			continue
		}
		batch = append(batch, t)
		if size += t.Size; size >= mergeBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (m *merging) mergeBatch(ctx context.Context, batch []*checkpoint.Tensor) error {
	req := &MergeRequest{Sources: len(m.spec.Sources), Steps: m.spec.Steps, Float64: m.spec.Float64,
		AllowNonFinite: m.spec.AllowNonFinite, Threads: m.spec.Threads, Params: m.spec.Params}
	if m.report.Weights != nil {
		req.Weights = [][]float64{m.report.Weights}
	}
	for _, t := range batch {
		req.Tensors = append(req.Tensors, m.operands(t))
	}
	response, err := m.strategy.Merge(ctx, req)
	if err != nil {
		return err
	}
	m.report.Backend = response.Backend
	for _, r := range response.Tensors {
		m.account(r)
	}
	return nil
}

func (m *merging) operands(out *checkpoint.Tensor) MergeTensor {
	row := m.rows[out.Name]
	mt := MergeTensor{Name: out.Name, Shape: out.Shape, Outputs: []MergeOperand{operand(out, true)}}
	for i, t := range row.Tensors {
		if i == len(m.spec.Sources) {
			base := operand(t, false)
			mt.Base = &base
			break
		}
		mt.Inputs = append(mt.Inputs, operand(t, false))
		m.report.BytesRead += t.Size
	}
	m.report.Bytes += out.Size
	return mt
}

func operand(t *checkpoint.Tensor, writable bool) MergeOperand {
	dtype, _ := t.Dtype.Numeric()
	return MergeOperand{Dtype: dtype, Extent: t.Extent(writable)}
}

func (m *merging) account(r TensorReport) {
	if r.Policy == "copied" {
		m.report.Copied = append(m.report.Copied, r.Name)
	} else {
		m.report.Tensors++
	}
	if slices.ContainsFunc(r.NonFinite, func(n int64) bool { return n > 0 }) {
		m.report.NonFinite = append(m.report.NonFinite, r)
	}
}

// describe stages the side files of the newest source and the recipe. Neither
// holds a time, so that a resumed merge gives the same bytes.
func (m *merging) describe(w *checkpoint.Writer) error {
	newest := m.spec.Sources[len(m.spec.Sources)-1]
	if _, err := w.CopySideFiles(newest); err != nil {
		return err
	}
	sources := make([]string, len(m.spec.Sources))
	for i, dir := range m.spec.Sources {
		sources[i] = filepath.Base(dir)
	}
	recipe, err := json.MarshalIndent(map[string]any{
		"method": m.report.Method, "parameters": m.spec.Params, "weights": m.report.Weights, "sources": sources,
		"dtype": m.spec.Dtype.String(), "copied": m.copied(), "warnings": m.report.Warnings,
		"accumulated_in": map[bool]string{false: "float32", true: "float64"}[m.spec.Float64],
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := w.WriteFile("trivium_merge.json", append(recipe, '\n')); err != nil {
		return err
	}
	return w.WriteFile("README.md", m.card(sources))
}

// copied lists the tensors that are taken from the newest source, whether this
// run copied them or the one it resumed.
func (m *merging) copied() []string {
	names := []string{}
	for _, row := range m.pairing.Rows {
		if d, _ := m.newest(row).Dtype.Numeric(); !d.IsFloat() {
			names = append(names, row.Name)
		}
	}
	return names
}

// card is the model card.
func (m *merging) card(sources []string) []byte {
	text := fmt.Sprintf("# Merged checkpoint\n\nMade by `trivium merge` with %s. `trivium_merge.json` has the recipe.\n\n| source | weight |\n|---|---|\n", m.report.Method)
	for i, s := range sources {
		weight := ""
		if m.report.Weights != nil {
			weight = fmt.Sprintf("%.6g", m.report.Weights[i])
		}
		text += fmt.Sprintf("| %s | %s |\n", s, weight)
	}
	return []byte(text)
}
