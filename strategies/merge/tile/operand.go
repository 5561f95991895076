package tile

import (
	"fmt"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
)

// check makes sure that every operand has the bytes its shape needs and a dtype
// that can be merged, so that the tiles need not.
func (b *batch) check(t *core.MergeTensor) error {
	if len(t.Inputs) != b.req.Sources || b.req.Sources < 1 {
		return core.Invalid(b.id, "tensor %q has %d inputs: want one for each of %d sources", t.Name, len(t.Inputs), b.req.Sources)
	}
	newest := t.Inputs[len(t.Inputs)-1].Dtype
	lists := [][]core.MergeOperand{t.Inputs, t.Outputs}
	if t.Base != nil {
		lists = append(lists, []core.MergeOperand{*t.Base})
	}
	for _, list := range lists {
		for i, o := range list {
			if size := length(t.Shape) * o.Dtype.Size(); o.Extent.Size != size || o.Dtype.Size() == 0 {
				return core.Invalid(b.id, "tensor %q, operand %d: %d bytes of %v: shape %v wants %d", t.Name, i, o.Extent.Size, o.Dtype, t.Shape, size)
			}
			if o.Dtype.IsFloat() != newest.IsFloat() {
				return core.Errorf(core.ErrCheckpoint, "tensor %q is %v in one place and %v in another: want real numbers in all or in none", t.Name, o.Dtype, newest)
			}
		}
	}
	for i, o := range t.Outputs {
		if copied(t) && o.Dtype != newest {
			return core.Errorf(core.ErrCheckpoint, "tensor %q is %v and would be written as %v: integers are copied as they are", t.Name, newest, o.Dtype)
		}
		if !o.Extent.Writable {
			return core.Invalid(b.id, "tensor %q: output %d is not writable", t.Name, i)
		}
	}
	return nil
}

// mapped is some operands of one tile, or of a tensor, in memory until close.
type mapped struct {
	vectors  []hardware.Vector
	sizes    []int64 // bytes of an element of each
	mappings []*tensor.Mapping
	windows  []window
	room     *buffers // for copies; nil: each has its own memory
	chunk    []byte   // in which the windows' parts are put together
}

// window is an operand that is put together a chunk at a time.
type window struct {
	*tensor.Window
	operand int
}

func (m *mapped) close() {
	for _, mapping := range m.mappings {
		if room := mapping.Room(); room != nil {
			m.room.put(room)
		}
		_ = mapping.Close() // of memory that was mapped: it cannot fail
	}
	for _, w := range m.windows {
		_ = w.Close() // the same
	}
	if m.chunk != nil {
		m.room.put(m.chunk)
	}
}

// mapTile maps the tile's part of operands. The caller closes it.
func (b *batch) mapTile(operands []core.MergeOperand, j job) (*mapped, error) {
	return b.mapIn(&mapped{room: &b.sources}, operands, j)
}

func (b *batch) mapIn(m *mapped, operands []core.MergeOperand, j job) (*mapped, error) {
	var room func(size int64) []byte
	if m.room != nil {
		room = m.room.get
	}
	for _, o := range operands {
		size := o.Dtype.Size()
		mapping, err := o.Extent.MapIn(j.start*size, j.count*size, room)
		if mapping != nil {
			m.mappings = append(m.mappings, mapping)
		}
		if err != nil {
			m.close()
			return nil, b.unmapped(o, j, err)
		}
		m.vectors = append(m.vectors, hardware.Vector{Data: unsafe.Pointer(&mapping.Bytes()[0]), Dtype: vectorDtype(o.Dtype), Len: j.count})
		m.sizes = append(m.sizes, size)
	}
	return m, nil
}

// mapPieces is mapTile for tensors some of which are in many pieces: gather puts
// those together.
func (b *batch) mapPieces(operands []core.MergeOperand, j job) (*mapped, error) {
	m := &mapped{room: &b.sources}
	for i, o := range operands {
		size := o.Dtype.Size()
		if !pieces(o) {
			if _, err := b.mapIn(m, operands[i:i+1], j); err != nil {
				return nil, err
			}
			continue
		}
		w, err := o.Extent.Cut.Window(j.start*size, j.count*size)
		if err != nil {
			m.close()
			return nil, b.unmapped(o, j, err)
		}
		m.windows = append(m.windows, window{w, i})
		m.vectors = append(m.vectors, hardware.Vector{Dtype: vectorDtype(o.Dtype), Len: j.count})
		m.sizes = append(m.sizes, size)
	}
	return m, nil
}

// gather puts the operands that are in pieces together in parts, count elements of
// each from first on. They are there until the next are.
func (m *mapped) gather(parts []hardware.Vector, first, count int64) error {
	total, at := int64(0), int64(0)
	for _, w := range m.windows {
		total += aligned(count * m.sizes[w.operand])
	}
	if int64(len(m.chunk)) < total {
		m.chunk = m.room.get(total)
	}
	for _, w := range m.windows {
		size := m.sizes[w.operand]
		to := m.chunk[at : at+count*size]
		if err := w.CopyTo(to, first*size); err != nil {
			return err
		}
		parts[w.operand].Data = unsafe.Pointer(&to[0])
		at += aligned(count * size)
	}
	return nil
}

// unmapped names the file and the tensor of a mapping that failed.
func (b *batch) unmapped(o core.MergeOperand, j job, err error) error {
	return core.Errorf(core.ErrCheckpoint, "%s: tensor %q: %w", o.Name(), b.req.Tensors[j.tensor].Name, err).
		WithHint("give the process more memory maps (vm.max_map_count), or merge with fewer threads")
}

// part is some elements of what is mapped.
func (m *mapped) part(first, count int64) []hardware.Vector {
	parts := make([]hardware.Vector, len(m.vectors))
	for i, v := range m.vectors {
		if v.Len = count; v.Data != nil {
			v.Data = unsafe.Add(v.Data, first*m.sizes[i])
		}
		parts[i] = v
	}
	return parts
}

// view is the same as a mapping of its own; only m is closed.
func (m *mapped) view(j job) *mapped {
	return &mapped{vectors: m.part(j.start, j.count), sizes: m.sizes}
}

func vectorDtype(d tensor.Dtype) hardware.VectorDtype {
	switch d {
	case tensor.BFloat16:
		return hardware.VectorBFloat16
	case tensor.Float16:
		return hardware.VectorFloat16
	case tensor.Float64:
		return hardware.VectorFloat64
	case tensor.Float8E4M3:
		return hardware.VectorFloat8E4M3
	case tensor.Float8E5M2:
		return hardware.VectorFloat8E5M2
	}
	return hardware.VectorFloat32
}

// copy takes a tile of the newest source as it is.
func (b *batch) copy(j job) error {
	t := &b.req.Tensors[j.tensor]
	newest := t.Inputs[len(t.Inputs)-1]
	size := newest.Dtype.Size()
	from, err := newest.Extent.Map(j.start*size, j.count*size)
	if err != nil {
		return b.unmapped(newest, j, err)
	}
	defer from.Close()
	for _, o := range t.Outputs {
		if err := b.write(o, j.start, from.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func nonFiniteMessage(t *core.MergeTensor, source int, n int64, j job) string {
	whose, operand := "the base", t.Base
	if source < len(t.Inputs) {
		whose, operand = fmt.Sprintf("source %d", source), &t.Inputs[source]
	}
	return fmt.Sprintf("tensor %q of %s (%s) has %d NaN or Inf in elements %d to %d",
		t.Name, whose, operand.Name(), n, j.start, j.start+j.count-1)
}
