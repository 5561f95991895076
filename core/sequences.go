package core

import "math"

// SequenceExtent is one sequence of a request: rows [QueryStart, QueryEnd) of
// queries and [KeyStart, KeyEnd) of keys of a batch row. Position 0 is key row
// KeyStart; the query at QueryStart has position Offset.
type SequenceExtent struct {
	Batch                int
	QueryStart, QueryEnd int
	KeyStart, KeyEnd     int
	Offset               int
}

// Extents cuts a request into its sequences: a batch row each, less its
// padding, or the packed segments. The request must be valid.
func (r *AttentionRequest) Extents() []SequenceExtent {
	if r.CuSeqlens != nil {
		extents := make([]SequenceExtent, len(r.CuSeqlens)-1)
		for s := range extents {
			start, end := int(r.CuSeqlens[s]), int(r.CuSeqlens[s+1])
			extents[s] = SequenceExtent{QueryStart: start, QueryEnd: end, KeyStart: start, KeyEnd: end}
		}
		return extents
	}
	extents := make([]SequenceExtent, r.Query.Dim(0))
	for b := range extents {
		e := SequenceExtent{Batch: b, QueryEnd: r.Query.Dim(2), KeyEnd: r.Key.Dim(2)}
		if r.KeyStart != nil {
			e.KeyStart = int(r.KeyStart[b])
		}
		if r.KeyEnd != nil {
			e.KeyEnd = int(r.KeyEnd[b])
		}
		first := 0
		if r.QueryOffset != nil {
			first = int(r.QueryOffset[b])
		}
		if r.Causal {
			e.QueryStart = min(max(e.KeyStart-first, 0), e.QueryEnd)
			e.QueryEnd = max(min(e.KeyEnd-first, e.QueryEnd), e.QueryStart)
		}
		e.Offset = first + e.QueryStart - e.KeyStart
		extents[b] = e
	}
	return extents
}

// BlockExtents is the block grid of each sequence.
func (r *AttentionRequest) BlockExtents(blockSize int) []BlockExtent {
	extents := r.Extents()
	grid := make([]BlockExtent, len(extents))
	for s, e := range extents {
		grid[s].KeyBlocks = ceilDiv(e.KeyEnd-e.KeyStart, blockSize)
		if e.QueryEnd == e.QueryStart {
			continue
		}
		first := int(floorDiv(int64(e.Offset), int64(blockSize)))
		last := int(floorDiv(int64(e.Offset+e.QueryEnd-e.QueryStart-1), int64(blockSize)))
		grid[s].FirstQueryBlock, grid[s].QueryBlocks = first, last-first+1
	}
	return grid
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// Validate checks everything about a request that does not depend on the
// strategy and fills in the scale.
func (r *AttentionRequest) Validate() error {
	if err := r.validateShapes(); err != nil {
		return err
	}
	if err := r.validateNumbers(); err != nil {
		return err
	}
	if r.CuSeqlens != nil {
		return r.validatePacked()
	}
	return r.validateRows()
}

func (r *AttentionRequest) validateShapes() error {
	q, k, v := r.Query, r.Key, r.Value
	if q == nil || k == nil || v == nil {
		return Invalid("", "query, key and value are needed")
	}
	if q.Rank() != 4 || k.Rank() != 4 || v.Rank() != 4 {
		return Invalid("", "query %v, key %v, value %v: want 4 axes [batch, heads, len, head_dim]", q.Shape(), k.Shape(), v.Shape())
	}
	for i, name := range []string{"batch", "q_heads", "q_len", "head_dim"} {
		if q.Dim(i) == 0 || k.Dim(i) == 0 {
			return Invalid("", "query %v, key %v: %s is 0, want at least 1", q.Shape(), k.Shape(), name)
		}
	}
	if q.Dim(0) != k.Dim(0) || k.Dim(0) != v.Dim(0) {
		return Invalid("", "batch %d of query, %d of key, %d of value: want the same", q.Dim(0), k.Dim(0), v.Dim(0))
	}
	if q.Dim(3) != k.Dim(3) || k.Dim(3) != v.Dim(3) {
		return Invalid("", "head_dim %d of query, %d of key, %d of value: want the same", q.Dim(3), k.Dim(3), v.Dim(3))
	}
	if k.Dim(1) != v.Dim(1) || k.Dim(2) != v.Dim(2) {
		return Invalid("", "key %v and value %v: want the same heads and length", k.Shape(), v.Shape())
	}
	if q.Dim(1)%k.Dim(1) != 0 {
		return Invalid("", "%d query heads on %d kv heads: want a multiple", q.Dim(1), k.Dim(1)).
			WithHint("check layout=: \"bhnd\" is [batch, heads, len, head_dim], \"bnhd\" is [batch, len, heads, head_dim]")
	}
	if q.Device() != k.Device() || k.Device() != v.Device() {
		return Invalid("", "query on %s, key on %s, value on %s: want one device", q.Device(), k.Device(), v.Device())
	}
	if q.Dtype() != k.Dtype() || k.Dtype() != v.Dtype() {
		return Invalid("", "dtypes %v, %v, %v of query, key, value: want the same", q.Dtype(), k.Dtype(), v.Dtype())
	}
	for _, t := range []struct {
		name   string
		stride int
	}{{"query", q.Stride(3)}, {"key", k.Stride(3)}, {"value", v.Stride(3)}} {
		if t.stride != 1 && q.Dim(3) > 1 {
			return Invalid("", "%s: its last axis has stride %d, want 1", t.name, t.stride).WithHint("make it contiguous first")
		}
	}
	return nil
}

func (r *AttentionRequest) validateNumbers() error {
	for _, n := range []struct {
		name  string
		value float64
	}{{"scale", r.Scale}, {"softcap", r.Softcap}} {
		if math.IsNaN(n.value) || math.IsInf(n.value, 0) || n.value < 0 {
			return Invalid("", "%s %g: want a finite number of at least 0", n.name, n.value)
		}
	}
	if r.Window < 0 {
		return Invalid("", "window %d: want at least 1, or none", r.Window)
	}
	if r.Sinks != nil && len(r.Sinks) != r.Query.Dim(1) {
		return Invalid("", "%d sinks: want one for each of %d query heads", len(r.Sinks), r.Query.Dim(1))
	}
	if r.Precision != "" && r.Precision != PrecisionHighest && r.Precision != PrecisionHigh {
		return Invalid("", "precision %q: want %q or %q", r.Precision, PrecisionHighest, PrecisionHigh)
	}
	for _, s := range r.Sinks {
		if math.IsNaN(float64(s)) || math.IsInf(float64(s), 1) {
			return Invalid("", "sink logit %g: want a finite number, or -inf", s)
		}
	}
	if r.Scale == 0 {
		r.Scale = 1 / math.Sqrt(float64(r.Query.Dim(3)))
	}
	if err := r.validateBound(); err != nil {
		return err
	}
	if r.Position != nil {
		return r.Position.Validate(r.Query.Dim(3))
	}
	return nil
}

func (r *AttentionRequest) validateBound() error {
	switch r.Bound {
	case "", BoundNormal:
		if r.Delta != 0 {
			return Invalid("", "delta %g with bound %q: want bound %q", r.Delta, BoundNormal, BoundProven)
		}
	case BoundProven:
		if r.Delta != 0 && !(r.Delta > 0 && r.Delta < 1) {
			return Invalid("", "delta %g: want (0, 1)", r.Delta)
		}
	default:
		return Invalid("", "bound %q: want %q or %q", r.Bound, BoundNormal, BoundProven)
	}
	return nil
}

func (r *AttentionRequest) validatePacked() error {
	if r.Query.Dim(0) != 1 || r.Query.Dim(2) != r.Key.Dim(2) {
		return Invalid("", "cu_seqlens with query %v and key %v: want batch 1 and equal lengths", r.Query.Shape(), r.Key.Shape())
	}
	if r.QueryOffset != nil || r.KeyStart != nil || r.KeyEnd != nil {
		return Invalid("", "cu_seqlens excludes q_offset, k_start and k_end")
	}
	last := len(r.CuSeqlens) - 1
	if last < 1 || r.CuSeqlens[0] != 0 || r.CuSeqlens[last] != int64(r.Query.Dim(2)) {
		return Invalid("", "cu_seqlens %v: want 0, ..., %d", r.CuSeqlens, r.Query.Dim(2))
	}
	for s := range last {
		if r.CuSeqlens[s+1] <= r.CuSeqlens[s] {
			return Invalid("", "cu_seqlens %v: want rising numbers", r.CuSeqlens)
		}
	}
	return nil
}

func (r *AttentionRequest) validateRows() error {
	batch, kLen := r.Query.Dim(0), int64(r.Key.Dim(2))
	for _, list := range []struct {
		name   string
		values []int64
		high   int64
	}{{"q_offset", r.QueryOffset, 1 << 40}, {"k_start", r.KeyStart, kLen}, {"k_end", r.KeyEnd, kLen}} {
		if list.values != nil && len(list.values) != batch {
			return Invalid("", "%d values of %s: want one for each of %d batch rows", len(list.values), list.name, batch)
		}
		for _, v := range list.values {
			if v < 0 || v > list.high {
				return Invalid("", "%s %d: want 0 to %d", list.name, v, list.high)
			}
		}
	}
	if r.KeyStart != nil && r.KeyEnd != nil {
		for b := range batch {
			if r.KeyStart[b] > r.KeyEnd[b] {
				return Invalid("", "batch row %d: k_start %d after k_end %d: want it before or at it", b, r.KeyStart[b], r.KeyEnd[b])
			}
		}
	}
	return nil
}
