package core

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

// Merge makes one checkpoint out of several. Nothing is visible in spec.Out
// until all of it is there; a killed merge leaves a journal that
// spec.Resume goes on from, to the same bytes.
func (e *Engine) Merge(ctx context.Context, spec *MergeSpec) (*MergeReport, error) {
	m, o, err := e.newMerge(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := e.merge(ctx, m); err != nil {
		return nil, err
	}
	return &o.report, nil
}

// newMerge is a merge with one output; no file is open yet.
func (e *Engine) newMerge(ctx context.Context, spec *MergeSpec) (*merging, *output, error) {
	s, err := e.mergeStrategy(spec.Method)
	if err != nil {
		return nil, nil, err
	}
	info := s.Info()
	if err := spec.validate(info); err != nil {
		return nil, nil, err
	}
	if spec.Params, err = info.Validate(spec.Params, 0); err != nil {
		return nil, nil, err
	}
	o := &output{dir: spec.Out, method: info.ID(), params: spec.Params, weights: spec.Weights, dtype: spec.Dtype}
	if o.weights == nil {
		if o.weights, err = weigh(ctx, s, len(spec.Sources), spec.Steps, spec.Params); err != nil {
			return nil, nil, at(err, info)
		}
	}
	return &merging{spec: spec, strategy: s, outputs: []*output{o}}, o, nil
}

// merge runs one pass and fills in the reports of its outputs.
func (e *Engine) merge(ctx context.Context, m *merging) error {
	started := time.Now()
	defer m.close()
	if err := m.run(ctx); err != nil {
		return at(CheckpointError(err), m.strategy.Info())
	}
	for _, w := range m.warnings {
		e.log.WithField(LogStrategy, m.strategy.Info().ID()).Warn(w)
	}
	for _, o := range m.outputs {
		o.report.Seconds = time.Since(started).Seconds()
	}
	return nil
}

func (e *Engine) mergeStrategy(method string) (MergeStrategy, error) {
	if err := e.open(); err != nil {
		return nil, err
	}
	s, err := e.registry.Lookup(Merge, method)
	if err != nil {
		return nil, err
	}
	return s.(MergeStrategy), nil
}

// weigh asks a linear method for its weights; nil for any other method.
func weigh(ctx context.Context, s MergeStrategy, sources int, steps []float64, params Params) ([]float64, error) {
	weigher, ok := s.(Weigher)
	if !ok || !s.Info().Capabilities.Weights {
		return nil, nil
	}
	weights, err := weigher.Weights(ctx, &WeightsRequest{Sources: sources, Steps: steps, Params: params})
	if err != nil {
		return nil, err
	}
	if len(weights) != sources {
		return nil, Errorf(ErrInternal, "%d weights for %d sources", len(weights), sources)
	}
	return weights, finite(s.Info(), "weights", weights)
}

// merging is one pass over the sources under way: a merge, or the candidates of
// a sweep. All outputs hold the same tensors.
type merging struct {
	spec     *MergeSpec // what the outputs share
	strategy MergeStrategy
	outputs  []*output
	// anyDtypes: sources may differ in dtype; the newest's are written by default.
	anyDtypes bool

	folders  []*checkpoint.Folder // sources, then the base if there is one
	pairing  *checkpoint.Pairing
	rows     map[string]checkpoint.Row
	warnings []string
}

// output is one checkpoint that the pass makes.
type output struct {
	dir     string
	method  string // dotted id
	params  Params
	weights []float64 // one for each source; nil: the strategy is not linear
	dtype   tensor.Dtype

	plan   *checkpoint.Plan
	writer *checkpoint.Writer
	sink   sink // the writer, or a part of what another process writes
	report MergeReport
}

// sink is where merged tensors go.
type sink interface {
	Tensors() []*checkpoint.Tensor
	Completed(name string) bool
	Note(name string) string
	DoneWith(t *checkpoint.Tensor, note string) error
}

func (m *merging) close() {
	for _, f := range m.folders {
		f.Close()
	}
}

// ready reads the sources and plans the outputs.
func (m *merging) ready() error {
	if err := m.read(); err != nil {
		return err
	}
	if err := m.checkConfig(); err != nil {
		return err
	}
	for _, o := range m.outputs {
		if err := m.prepare(o); err != nil {
			return err
		}
	}
	return nil
}

// newestFolder is that of the last source; a base comes behind it.
func (m *merging) newestFolder() *checkpoint.Folder { return m.folders[len(m.spec.Sources)-1] }

// configFrom is the folder whose side files the outputs get, or NoConfig.
func (m *merging) configFrom() string {
	if m.spec.ConfigFrom != "" {
		return m.spec.ConfigFrom
	}
	return m.newestFolder().Dir
}

// checkConfig refuses to make a folder of weights that nothing can load: trainers
// save distributed checkpoints without a configuration.
func (m *merging) checkConfig() error {
	from := m.configFrom()
	if from == NoConfig || m.spec.ConfigFrom == "" && !m.newestFolder().Distributed {
		return nil
	}
	if !hasConfig(from) {
		return Errorf(ErrCheckpoint, "%s holds no config.json", from).
			WithHint("name a folder that has the model's configuration and tokenizer (config_from), or %q to write weights alone", NoConfig)
	}
	return nil
}

func hasConfig(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "config.json"))
	return err == nil
}

func (m *merging) run(ctx context.Context) error {
	if err := m.ready(); err != nil {
		return err
	}
	if m.spec.DryRun {
		return m.preflight()
	}
	pending := slices.DeleteFunc(slices.Clone(m.outputs), func(o *output) bool { return m.spec.Resume && m.finished(o) })
	if len(pending) == 0 {
		return nil
	}
	return m.write(ctx, pending)
}

// prepare plans an output and begins its report.
func (m *merging) prepare(o *output) error {
	if err := m.refuseSource(o.dir); err != nil {
		return err
	}
	var err error
	if o.plan, err = m.plan(o); err != nil {
		return err
	}
	copied := m.copied()
	o.report = MergeReport{Method: o.method, Sources: m.spec.Sources, Out: o.dir, Weights: o.weights, Params: o.params,
		Tensors: len(m.pairing.Rows) - len(copied), Copied: copied, Warnings: m.warnings, DryRun: m.spec.DryRun}
	if o.report.Recipe, err = m.recipe(o); err != nil {
		return err
	}
	space, err := checkpoint.Forecast(o.plan, o.dir)
	o.report.DiskNeed, o.report.DiskFree = space.Need, space.Free
	return err
}

func (m *merging) refuseSource(out string) error {
	target, err := filepath.Abs(out)
	if err != nil {
		return Invalid("", "output folder %q: %v", out, err)
	}
	for _, folder := range m.folders {
		if source, err := filepath.Abs(folder.Dir); err == nil && source == target {
			return Invalid("", "the output folder %s is one of the sources", out).WithHint("write to another folder")
		}
	}
	return nil
}

// preflight refuses what writing would refuse, without writing.
func (m *merging) preflight() error {
	var need, free int64
	for _, o := range m.outputs {
		if err := checkpoint.Preflight(o.plan, m.options(o)); err != nil {
			return err
		}
		need, free = need+o.report.DiskNeed, max(free, o.report.DiskFree)
	}
	if need > free {
		return Errorf(ErrCheckpoint, "%d outputs need %d bytes, %d are free", len(m.outputs), need, free).
			WithHint("write fewer candidates, or elsewhere; nothing has been written")
	}
	return nil
}

func (m *merging) options(o *output) checkpoint.Options {
	return checkpoint.Options{Dir: o.dir, Recipe: o.report.Recipe, Overwrite: m.spec.Overwrite, Resume: m.spec.Resume, Volatile: m.spec.Volatile}
}

// plan lays out the output, in the shards of the newest source if it keeps
// their dtypes.
func (m *merging) plan(o *output) (*checkpoint.Plan, error) {
	specs := make([]checkpoint.Spec, len(m.pairing.Rows))
	for i, row := range m.pairing.Rows {
		t := m.newest(row)
		dtype := t.Dtype
		if n, _ := t.Dtype.Numeric(); o.dtype != tensor.Invalid && n.IsFloat() {
			dtype = checkpoint.Stored(o.dtype)
		}
		specs[i] = checkpoint.Spec{Name: row.Name, Dtype: dtype, Shape: t.Shape}
	}
	if newest := m.newestFolder(); m.spec.ShardBytes == 0 && o.dtype == tensor.Invalid && !newest.Distributed {
		return checkpoint.Like(specs, newest)
	}
	return checkpoint.Split(specs, m.spec.ShardBytes)
}

func (m *merging) newest(row checkpoint.Row) *checkpoint.Tensor {
	return row.Tensors[len(m.spec.Sources)-1]
}

// copied lists the tensors that are taken from the newest source.
func (m *merging) copied() []string {
	var names []string
	for _, row := range m.pairing.Rows {
		if d, _ := m.newest(row).Dtype.Numeric(); !d.IsFloat() {
			names = append(names, row.Name)
		}
	}
	return names
}
