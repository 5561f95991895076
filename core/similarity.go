package core

import (
	"context"
	"strings"
	"time"
)

// comparer is the method that compares, since every linear method can.
const comparer = "sma"

// compareBatch bounds the bytes of one source that one call compares.
const compareBatch = 128 << 20

// SimilaritySpec says which checkpoints to compare.
type SimilaritySpec struct {
	Sources  []string // checkpoint folders, oldest first
	ModelKey string   // as in MergeSpec
	Threads  int
	Progress func(done, total int64) // bytes read
}

// SimilarityReport has the inner products of the checkpoints, by layer: cosines,
// distances, and those of the differences from a mean all follow from them.
type SimilarityReport struct {
	Sources   []string     `json:"sources"`
	Layers    []LayerGrams `json:"layers"`
	BytesRead int64        `json:"bytes_read"`
	Seconds   float64      `json:"seconds"`
}

// LayerGrams is a layer, or a tensor outside of the layers.
type LayerGrams struct {
	Name     string    `json:"name"` // "model.layers.3", "model.embed_tokens"
	Elements int64     `json:"elements"`
	Products []float64 `json:"products"` // [sources, sources]
}

// Similarity compares checkpoints with each other in one pass.
func (e *Engine) Similarity(ctx context.Context, spec *SimilaritySpec) (*SimilarityReport, error) {
	started := time.Now()
	s, err := e.mergeStrategy(comparer)
	if err != nil {
		return nil, err
	}
	if len(spec.Sources) < 2 {
		return nil, Invalid("", "%d checkpoints: want at least two to compare", len(spec.Sources))
	}
	c, ok := s.(Comparer)
	if !ok {
		return nil, Errorf(ErrUnsupported, "%s does not compare checkpoints", s.Info().ID()).WithHint("update its plugin")
	}
	m := &merging{spec: &MergeSpec{Sources: spec.Sources, ModelKey: spec.ModelKey, Threads: spec.Threads}, anyDtypes: true}
	defer m.close()
	if err := m.read(); err != nil {
		return nil, CheckpointError(err)
	}
	report := &SimilarityReport{Sources: spec.Sources}
	if err := m.compare(ctx, c, spec, report); err != nil {
		return nil, err
	}
	report.Seconds = time.Since(started).Seconds()
	return report, nil
}

func (m *merging) compare(ctx context.Context, c Comparer, spec *SimilaritySpec, report *SimilarityReport) error {
	req := &CompareRequest{Sources: len(spec.Sources), Threads: spec.Threads}
	size, total, parts := int64(0), int64(0), 0
	for _, folder := range m.folders {
		total += folder.Size()
	}
	flush := func() error {
		if len(req.Tensors) == 0 {
			return nil
		}
		response, err := c.Compare(ctx, req)
		if err != nil {
			return err
		}
		for i, t := range req.Tensors {
			report.add(t, response.Products[i])
		}
		if spec.Progress != nil {
			spec.Progress(report.BytesRead, total)
		}
		req.Tensors, size, parts = nil, 0, 0
		return nil
	}
	for _, row := range m.pairing.Rows {
		if d, _ := m.newest(row).Dtype.Numeric(); !d.IsFloat() {
			continue
		}
		t := MergeTensor{Name: row.Name, Shape: row.Tensors[0].Shape}
		for _, source := range row.Tensors {
			t.Inputs = append(t.Inputs, operand(source, false))
			parts += source.Parts()
		}
		req.Tensors = append(req.Tensors, t)
		if size += row.Tensors[0].Size; size >= compareBatch || parts >= mergeParts {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (r *SimilarityReport) add(t MergeTensor, products []float64) {
	name := layerOf(t.Name)
	at := len(r.Layers) - 1
	for at >= 0 && r.Layers[at].Name != name {
		at--
	}
	if at < 0 {
		at = len(r.Layers)
		r.Layers = append(r.Layers, LayerGrams{Name: name, Products: make([]float64, len(products))})
	}
	layer := &r.Layers[at]
	for i, p := range products {
		layer.Products[i] += p
	}
	for _, in := range t.Inputs {
		r.BytesRead += in.Extent.Size
	}
	layer.Elements += t.Inputs[0].Extent.Size / t.Inputs[0].Dtype.Size()
}

// layerOf is the name up to its first number, or without its last part.
func layerOf(name string) string {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		if part != "" && strings.Trim(part, "0123456789") == "" {
			return strings.Join(parts[:i+1], ".")
		}
	}
	if len(parts) == 1 {
		return name
	}
	return strings.Join(parts[:len(parts)-1], ".")
}
