package core

import (
	"context"
	"time"

	"github.com/trivium-ml/trivium/core/checkpoint"
)

// MergeParts is a merge that was begun, to be done a shard at a time by any
// process that sees the same files.
type MergeParts struct {
	Recipe string `json:"recipe"`
	// Shards are those that are not complete yet; none: the output is there.
	Shards   []MergeShard `json:"shards"`
	Finished bool         `json:"finished"`
	Bytes    int64        `json:"bytes"` // of all shards
}

// MergeShard is one file of the output.
type MergeShard struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// PartReport is what was done to one shard.
type PartReport struct {
	Shard     string            `json:"shard"`
	Notes     map[string]string `json:"notes"` // of each tensor, for the journal
	BytesRead int64             `json:"bytes_read"`
	Bytes     int64             `json:"bytes_written"`
	Backend   string            `json:"backend"`
	Warnings  []string          `json:"warnings,omitempty"`
}

// BeginMerge checks and plans a merge and reserves its output, for MergePart and
// FinishMerge. What an earlier run has finished, it leaves out.
func (e *Engine) BeginMerge(ctx context.Context, spec *MergeSpec) (*MergeParts, error) {
	m, o, err := e.newMerge(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer m.close()
	parts, err := m.begin(o)
	if err != nil {
		return nil, at(CheckpointError(err), m.strategy.Info())
	}
	return parts, nil
}

func (m *merging) begin(o *output) (*MergeParts, error) {
	if err := m.ready(); err != nil {
		return nil, err
	}
	parts := &MergeParts{Recipe: o.report.Recipe, Bytes: o.plan.Size}
	if m.spec.Resume && m.finished(o) {
		parts.Finished = true
		return parts, nil
	}
	if m.spec.Overwrite && !m.spec.Resume {
		if err := checkpoint.Discard(o.dir); err != nil {
			return nil, err
		}
	}
	w, err := checkpoint.Create(o.plan, m.options(o))
	if err != nil {
		return nil, err
	}
	open, shardOf := map[string]bool{}, o.plan.ShardOf()
	for _, t := range w.Tensors() {
		if !w.Completed(t.Name) {
			open[shardOf[t.Name]] = true
		}
	}
	for _, s := range o.plan.Shards {
		if open[s.Name] {
			parts.Shards = append(parts.Shards, MergeShard{Name: s.Name, Bytes: s.Size})
		}
	}
	return parts, w.Close()
}

// MergePart fills one shard of a merge that was begun with the same spec. It may
// run twice, or at two places at once: the bytes are the same.
func (e *Engine) MergePart(ctx context.Context, spec *MergeSpec, recipe, shard string) (*PartReport, error) {
	m, o, err := e.newMerge(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer m.close()
	report, err := m.part(ctx, o, recipe, shard)
	if err != nil {
		return nil, at(CheckpointError(err), m.strategy.Info())
	}
	return report, nil
}

func (m *merging) part(ctx context.Context, o *output, recipe, shard string) (*PartReport, error) {
	if err := m.ready(); err != nil {
		return nil, err
	}
	if o.report.Recipe != recipe {
		return nil, Errorf(ErrCheckpoint, "the sources are not those the merge was begun with: their sizes, times or paths differ here").
			WithHint("give every machine the same files under the same paths")
	}
	p, err := checkpoint.OpenPart(o.plan, m.options(o), shard)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	o.sink = p
	if err := m.fill(ctx, []*output{o}); err != nil {
		return nil, err
	}
	if !m.spec.Volatile {
		if err := p.Sync(); err != nil {
			return nil, err
		}
	}
	report := &PartReport{Shard: shard, Notes: map[string]string{}, BytesRead: o.report.BytesRead, Bytes: o.report.Bytes,
		Backend: o.report.Backend, Warnings: o.report.Warnings}
	for _, t := range p.Tensors() {
		report.Notes[t.Name] = p.Note(t.Name)
	}
	return report, nil
}

// FinishMerge makes a merge visible whose shards are all filled. It records the
// parts one after the other, so that what came before an error is not done again.
func (e *Engine) FinishMerge(ctx context.Context, spec *MergeSpec, recipe string, parts []PartReport) (*MergeReport, error) {
	started := time.Now()
	m, o, err := e.newMerge(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.finish(o, recipe, parts); err != nil {
		return nil, at(CheckpointError(err), m.strategy.Info())
	}
	o.report.Seconds = time.Since(started).Seconds()
	return &o.report, nil
}

func (m *merging) finish(o *output, recipe string, parts []PartReport) error {
	if err := m.ready(); err != nil {
		return err
	}
	if o.report.Recipe != recipe {
		return Errorf(ErrCheckpoint, "the sources have changed since the merge was begun").WithHint("begin it again, with overwrite")
	}
	if m.finished(o) {
		return nil
	}
	options := m.options(o)
	options.Resume = true
	w, err := checkpoint.Create(o.plan, options)
	if err != nil {
		return err
	}
	defer func() {
		if o.writer != nil {
			_ = o.writer.Close() // what is recorded stays for a resume
		}
	}()
	o.writer, o.sink = w, w
	notes := map[string]string{}
	for _, p := range parts {
		for name, note := range p.Notes {
			notes[name] = note
		}
		o.report.BytesRead, o.report.Bytes, o.report.Backend = o.report.BytesRead+p.BytesRead, o.report.Bytes+p.Bytes, p.Backend
	}
	for _, t := range w.Tensors() {
		note, done := notes[t.Name]
		switch {
		case w.Completed(t.Name):
			note = w.Note(t.Name)
		case !done:
			continue // Commit names it
		default:
			if err := w.DoneWith(t, note); err != nil {
				return err
			}
		}
		if err := o.resumed(t.Name, note); err != nil {
			return err
		}
	}
	o.report.Resumed -= len(notes)
	if err := m.describe(o); err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		return err
	}
	o.writer = nil
	return nil
}
