package kernel

import (
	"encoding/binary"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// prepare cuts the request into parts and turns what the position plan turns.
func (c *DeviceCall) prepare() error {
	r := c.Request
	whole, err := c.whole()
	if err != nil {
		return err
	}
	extents := r.Extents()
	switch {
	case uniform(r, extents):
		whole.Count, whole.Offset = len(extents), extents[0].Offset
		c.parts = []Part{whole}
	case c.densely(extents):
		whole.Count, whole.Sequences = len(extents), sequences(extents)
		c.parts = []Part{whole}
	default:
		for i, e := range extents {
			if e.QueryEnd > e.QueryStart && e.KeyEnd > e.KeyStart {
				c.parts = append(c.parts, whole.cut(i, e))
			}
		}
	}
	if c.sinks, err = c.uploadSinks(); err != nil {
		return err
	}
	for i := range c.parts {
		p := &c.parts[i]
		p.ArrivedQuery, p.ArrivedKey = p.Query, p.Key
		if err := c.position(p); err != nil {
			return err
		}
	}
	return nil
}

// densely says whether nothing is to be chosen, so that one launch does for all
// sequences.
func (c *DeviceCall) densely(extents []core.SequenceExtent) bool {
	if c.info.Name == "dense" || c.Request.ForceDense {
		return true
	}
	for _, e := range extents {
		if e.QueryEnd-e.QueryStart > 1 {
			return false
		}
	}
	return c.Request.Mask == nil
}

func sequences(extents []core.SequenceExtent) []cuda.Sequence {
	all := make([]cuda.Sequence, len(extents))
	for i, e := range extents {
		all[i] = cuda.Sequence{Batch: e.Batch, QueryRow: e.QueryStart, Queries: e.QueryEnd - e.QueryStart,
			KeyRow: e.KeyStart, Keys: e.KeyEnd - e.KeyStart, Offset: max(e.Offset, 0)}
	}
	return all
}

// whole is the request as one part.
func (c *DeviceCall) whole() (Part, error) {
	r := c.Request
	p := Part{}
	for _, t := range []struct {
		name string
		from *tensor.Tensor
		to   *cuda.Tensor
	}{{"query", r.Query, &p.Query}, {"key", r.Key, &p.Key}, {"value", r.Value, &p.Value}, {"output", r.Output, &p.Output}} {
		if t.from == nil {
			continue
		}
		var err error
		if *t.to, err = c.operand(t.name, t.from); err != nil {
			return Part{}, err
		}
	}
	if r.Output == nil {
		return p, nil
	}
	if r.LSE != nil {
		if r.LSE.Stride(2) != 1 && r.LSE.Dim(2) > 1 {
			return Part{}, core.Invalid(c.info.ID(), "lse has strides %v: want 1 for the last axis", r.LSE.Strides())
		}
		p.LSE, p.LSEBatch, p.LSEHead = address(r.LSE), int64(r.LSE.Stride(0)), int64(r.LSE.Stride(1))
		return p, nil
	}
	var err error
	p.LSEHead = int64(p.Query.Rows)
	p.LSEBatch = p.LSEHead * int64(p.Query.Heads)
	p.LSE, err = c.Work.Scratch(4 * p.Query.Batch * int(p.LSEBatch))
	return p, err
}

// operand is a tensor as the kernels take it.
func (c *DeviceCall) operand(name string, t *tensor.Tensor) (cuda.Tensor, error) {
	for i := range 3 {
		if t.Stride(i) == 0 && t.Dim(i) > 1 {
			return cuda.Tensor{}, core.Invalid(c.info.ID(), "%s repeats along axis %d: on %s want every element in its place", name, i, t.Device().Kind()).
				WithHint("%s.contiguous() copies it", name)
		}
	}
	return cuda.Tensor{Data: address(t), Batch: t.Dim(0), Heads: t.Dim(1), Rows: t.Dim(2), Dim: t.Dim(3),
		StrideB: int64(t.Stride(0)), StrideH: int64(t.Stride(1)), Stride: int64(t.Stride(2))}, nil
}

func address(t *tensor.Tensor) cuda.Address { return cuda.Address(uintptr(t.Pointer())) }

// uniform says whether all sequences are whole batch rows alike.
func uniform(r *core.AttentionRequest, extents []core.SequenceExtent) bool {
	if r.CuSeqlens != nil {
		return len(extents) == 1
	}
	for _, e := range extents {
		if e.QueryStart != 0 || e.QueryEnd != r.Query.Dim(2) || e.KeyStart != 0 || e.KeyEnd != r.Key.Dim(2) || e.Offset != extents[0].Offset {
			return false
		}
	}
	return true
}

// cut is one sequence of the whole.
func (p Part) cut(sequence int, e core.SequenceExtent) Part {
	p.First, p.Count, p.Offset = sequence, 1, e.Offset
	p.Query = rows(p.Query, e.Batch, e.QueryStart, e.QueryEnd)
	p.Key = rows(p.Key, e.Batch, e.KeyStart, e.KeyEnd)
	p.Value = rows(p.Value, e.Batch, e.KeyStart, e.KeyEnd)
	if p.Output.Data == 0 {
		return p
	}
	p.Output = rows(p.Output, e.Batch, e.QueryStart, e.QueryEnd)
	p.LSE += cuda.Address(4 * (int64(e.Batch)*p.LSEBatch + int64(e.QueryStart)))
	return p
}

// rows are rows [start, end) of one batch entry.
func rows(t cuda.Tensor, batch, start, end int) cuda.Tensor {
	t.Data += cuda.Address(2 * (int64(batch)*t.StrideB + int64(start)*t.Stride))
	t.Batch, t.Rows = 1, end-start
	return t
}

func (c *DeviceCall) uploadSinks() (cuda.Address, error) {
	sinks := c.Request.Sinks
	if len(sinks) == 0 {
		return 0, nil
	}
	bytes := make([]byte, 0, 4*len(sinks))
	for _, s := range sinks {
		bytes = binary.NativeEndian.AppendUint32(bytes, math.Float32bits(s))
	}
	at, err := c.Work.Scratch(len(bytes))
	if err != nil {
		return 0, err
	}
	return at, c.Work.Upload(at, bytes)
}

// clearPadding gives queries that belong to no sequence, or whose sequence has
// no keys, the result of a query that sees nothing.
func (c *DeviceCall) clearPadding() error {
	r := c.Request
	if r.CuSeqlens != nil {
		return nil
	}
	extents := r.Extents()
	if uniform(r, extents) {
		return nil
	}
	whole, err := c.whole()
	if err != nil {
		return err
	}
	for _, e := range extents {
		if e.KeyEnd == e.KeyStart {
			e.QueryEnd = e.QueryStart
		}
		row := rows(whole.Output, e.Batch, 0, whole.Output.Rows)
		lse := whole.LSE + cuda.Address(4*int64(e.Batch)*whole.LSEBatch)
		for _, gap := range [][2]int{{0, e.QueryStart}, {e.QueryEnd, whole.Output.Rows}} {
			if err := c.Work.Clear(row, lse, whole.LSEHead, gap[0], gap[1]); err != nil {
				return err
			}
		}
	}
	return nil
}
