package core

import (
	"context"
	"slices"
	"time"

	"github.com/trivium-ml/trivium/core/tensor"
)

// SweepSpec says which linear merges of some sources to make in one pass.
type SweepSpec struct {
	Sources    []string // checkpoint folders, oldest first
	Steps      []float64
	Candidates []Candidate
	ModelKey   string // as in MergeSpec
	ConfigFrom string // as in MergeSpec

	Float64    bool
	AnyDtypes  bool // sources may differ in dtype: the newest's are written where a candidate names none
	Overwrite  bool
	Resume     bool
	Volatile   bool
	DryRun     bool
	ShardBytes int64
	Threads    int
	Progress   func(done, total int64) // bytes written of all candidates
}

// Candidate is one merge of a sweep.
type Candidate struct {
	Name   string
	Method string // a linear one
	Params Params
	// Sources are indices into those of the sweep, rising. The last is the
	// newest of all, from which integers and side files come. Nil: all.
	Sources []int
	Weights []float64    // one for each of Sources; nil: the method's own
	Dtype   tensor.Dtype // Invalid: as in the sources
	Out     string       // folder to be made; "": the weights alone are wanted
}

// SweepReport says what a sweep made.
type SweepReport struct {
	Sources    []string          `json:"sources"`
	Steps      []float64         `json:"steps,omitempty"`
	Candidates []CandidateReport `json:"candidates"`
	BytesRead  int64             `json:"bytes_read"` // once, whatever the number of candidates
	Bytes      int64             `json:"bytes_written"`
	Seconds    float64           `json:"seconds"`
}

// CandidateReport is one merge of a sweep.
type CandidateReport struct {
	Name    string       `json:"name"`
	Method  string       `json:"method"`
	Params  Params       `json:"params,omitempty"`
	Sources []int        `json:"sources"`
	Weights []float64    `json:"weights"`         // one for each source of the sweep
	Merge   *MergeReport `json:"merge,omitempty"` // absent when only the weights were wanted
}

// Sweep makes many linear merges in one pass over the sources. Each candidate is
// what Merge would make of the same weights, to the byte.
func (e *Engine) Sweep(ctx context.Context, spec *SweepSpec) (*SweepReport, error) {
	started := time.Now()
	if len(spec.Candidates) == 0 {
		return nil, Invalid("", "no candidates: want at least one")
	}
	m := &merging{spec: spec.merge(), anyDtypes: spec.AnyDtypes}
	report := &SweepReport{Sources: spec.Sources, Steps: spec.Steps}
	written := map[int]*output{}
	for i := range spec.Candidates {
		s, row, err := e.candidate(ctx, spec, i)
		if err != nil {
			return nil, err
		}
		report.Candidates = append(report.Candidates, *row)
		if c := spec.Candidates[i]; c.Out != "" {
			m.strategy = s
			written[i] = &output{dir: c.Out, method: row.Method, params: row.Params, weights: row.Weights, dtype: c.Dtype}
			m.outputs = append(m.outputs, written[i])
		}
	}
	if len(m.outputs) > 0 {
		if err := refuseTwice(spec.Candidates); err != nil {
			return nil, err
		}
		if err := e.merge(ctx, m); err != nil {
			return nil, err
		}
	}
	for i, o := range written {
		report.Candidates[i].Merge = &o.report
		report.BytesRead = max(report.BytesRead, o.report.BytesRead)
		report.Bytes += o.report.Bytes
	}
	report.Seconds = time.Since(started).Seconds()
	return report, nil
}

// merge is what all candidates share. NaN is not allowed, since zero times NaN
// would reach candidates that leave the source out.
func (s *SweepSpec) merge() *MergeSpec {
	return &MergeSpec{Sources: s.Sources, Steps: s.Steps, ModelKey: s.ModelKey, ConfigFrom: s.ConfigFrom, Float64: s.Float64, Overwrite: s.Overwrite, Resume: s.Resume,
		Volatile: s.Volatile, DryRun: s.DryRun, ShardBytes: s.ShardBytes, Threads: s.Threads, Progress: s.Progress}
}

// candidate finds the weights of a candidate over all sources.
func (e *Engine) candidate(ctx context.Context, spec *SweepSpec, index int) (MergeStrategy, *CandidateReport, error) {
	c := spec.Candidates[index]
	s, err := e.mergeStrategy(c.Method)
	if err != nil {
		return nil, nil, err
	}
	info := s.Info()
	if !info.Capabilities.Weights {
		return nil, nil, Errorf(ErrUnsupported, "%s is not linear: a sweep takes linear methods", info.ID()).WithHint("merge it alone")
	}
	used, err := c.sources(spec)
	if err != nil {
		return nil, nil, err
	}
	one := spec.merge()
	one.Out, one.Sources, one.Weights, one.Dtype, one.Steps = "any", make([]string, len(used)), c.Weights, c.Dtype, nil
	if spec.Steps != nil {
		if len(spec.Steps) != len(spec.Sources) {
			return nil, nil, Invalid(info.ID(), "%d steps: want one for each of %d sources", len(spec.Steps), len(spec.Sources))
		}
		for _, i := range used {
			one.Steps = append(one.Steps, spec.Steps[i])
		}
	}
	if err := one.validate(info); err != nil {
		return nil, nil, err
	}
	row := &CandidateReport{Name: c.Name, Method: info.ID(), Sources: used, Weights: make([]float64, len(spec.Sources))}
	if row.Params, err = info.Validate(c.Params, 0); err != nil {
		return nil, nil, err
	}
	weights := c.Weights
	if weights == nil {
		if weights, err = weigh(ctx, s, len(used), one.Steps, row.Params); err != nil {
			return nil, nil, at(err, info)
		}
	}
	for k, i := range used {
		row.Weights[i] = weights[k]
	}
	return s, row, nil
}

func (c *Candidate) sources(spec *SweepSpec) ([]int, error) {
	newest := len(spec.Sources) - 1
	if c.Sources == nil {
		all := make([]int, len(spec.Sources))
		for i := range all {
			all[i] = i
		}
		return all, nil
	}
	for k, i := range c.Sources {
		if i < 0 || i > newest || (k > 0 && i <= c.Sources[k-1]) {
			return nil, Invalid("", "candidate %q: sources %v: want rising indices below %d", c.Name, c.Sources, len(spec.Sources))
		}
	}
	if len(c.Sources) == 0 || c.Sources[len(c.Sources)-1] != newest {
		return nil, Invalid("", "candidate %q: sources %v: want the newest, %d, among them", c.Name, c.Sources, newest).
			WithHint("sweep once for each window end")
	}
	return c.Sources, nil
}

func refuseTwice(candidates []Candidate) error {
	var seen []string
	for _, c := range candidates {
		if c.Out != "" && slices.Contains(seen, c.Out) {
			return Invalid("", "two candidates would be written to %s", c.Out)
		}
		seen = append(seen, c.Out)
	}
	return nil
}
