package kernel

import (
	"fmt"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// OnHost is the DeviceSelector of what has no kernels to choose with: queries
// and keys are copied to the host, the strategy's Selector chooses there on the
// kernel's backend, and the tiles go back. The report says so. It waits.
func OnHost(c *DeviceCall, p *Part) (*DeviceSelection, error) {
	if size := c.Params.Int("block_size"); size%cuda.Tile != 0 {
		return nil, c.Unsupported("block_size %d, not a multiple of %d,", size, cuda.Tile)
	}
	req, copied, err := c.hostRequest(p)
	if err != nil {
		return nil, err
	}
	// What `trivium tune` measured is of attention on the host.
	call, err := (&Kernel{backend: c.kernel.backend}).open(c.ctx, c.info, req, c.Params)
	if err != nil {
		return nil, err
	}
	defer call.Close()
	selection, err := call.choose(c.ctx, c.onHost)
	if err != nil {
		return nil, err
	}
	c.Note(fmt.Sprintf("blocks were chosen on %s: %d bytes of queries and keys were copied there", c.kernel.backend.Name(), copied))
	for _, note := range call.notes {
		c.Note(note)
	}
	return call.forDevice(p, selection), nil
}

// forDevice turns what was chosen on the host for a part into what is attended
// to on the device.
func (c *Call) forDevice(p *Part, selection *core.Selection) *DeviceSelection {
	chosen := &DeviceSelection{Masked: selection.Mask, OfPart: true, Reason: selection.Reason, Heads: selection.Heads, Judges: c.judges(), enforced: true}
	if selection.Mask != nil && chosen.Heads == nil {
		chosen.Heads = c.describeMask(selection)
	}
	for i := range chosen.Heads {
		chosen.Heads[i].Sequence += p.First
	}
	return chosen
}

// judges are the rows whose dense LSE a selector found in passing, by slot.
func (c *Call) judges() [][]int32 {
	all := make([][]int32, len(c.measured))
	for slot, m := range c.measured {
		for i := range m.lse {
			all[slot] = append(all[slot], int32(m.first+i))
		}
	}
	return all
}

// hostRequest is a part as a request for the host, to select, not to attend.
func (c *DeviceCall) hostRequest(p *Part) (req *core.AttentionRequest, copied int64, err error) {
	host := c.partRequest(p)
	if host.Query, err = c.fetch(p.ArrivedQuery); err != nil {
		return nil, 0, err
	}
	if host.Key, err = c.fetch(p.ArrivedKey); err != nil {
		return nil, 0, err
	}
	host.Value = host.Key // no selector looks at values
	if mask := c.Request.Mask; mask != nil {
		if err := c.checkMask(mask); err != nil {
			return nil, 0, err
		}
		host.Mask = ofSequences(mask, p.First, p.Count)
	}
	return host, host.Query.Span() + host.Key.Span(), nil
}

// partRequest is a part as a request to select, without its tensors.
func (c *DeviceCall) partRequest(p *Part) *core.AttentionRequest {
	r := *c.Request
	r.CuSeqlens, r.KeyStart, r.KeyEnd, r.Output, r.LSE, r.Ready, r.Done = nil, nil, nil, nil, nil, nil, nil
	r.QueryOffset = make([]int64, p.Count)
	for i := range r.QueryOffset {
		r.QueryOffset[i] = int64(p.Offset)
	}
	return &r
}

// fetch copies a tensor to the host, gaps between its rows included.
func (c *DeviceCall) fetch(t cuda.Tensor) (*tensor.Tensor, error) {
	layout := hostLayout(t)
	words := make([]uint64, layout.bytes/8+1)
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), layout.bytes)
	for _, run := range layout.runs {
		if err := c.Work.Download(bytes[run.to:run.to+run.bytes], t.Data+cuda.Address(run.from)); err != nil {
			return nil, err
		}
	}
	dtype := tensor.BFloat16
	if c.Half {
		dtype = tensor.Float16
	}
	shape := []int64{int64(t.Batch), int64(t.Heads), int64(t.Rows), int64(t.Dim)}
	return tensor.Borrow(unsafe.Pointer(&words[0]), dtype, shape, layout.strides, tensor.CPU)
}

// layout is where a tensor of 16-bit elements lies on the host, and the runs of
// memory that bring it there.
type layout struct {
	bytes   int
	strides []int64 // elements
	runs    []run
}

type run struct{ from, to, bytes int }

// hostLayout copies whole heads where the rows of a head are nearer to each
// other than heads are, and whole batch entries otherwise.
func hostLayout(t cuda.Tensor) layout {
	const size = 2
	head := (t.Rows-1)*int(t.Stride) + t.Dim // elements from the first to the last
	if t.Heads == 1 || int(t.StrideH) >= head {
		l := layout{strides: []int64{int64(t.Heads * head), int64(head), t.Stride, 1}}
		for b := range t.Batch {
			for h := range t.Heads {
				l.runs = append(l.runs, run{size * int(int64(b)*t.StrideB+int64(h)*t.StrideH), l.bytes, size * head})
				l.bytes += size * head
			}
		}
		return l
	}
	entry := (t.Heads-1)*int(t.StrideH) + head
	l := layout{strides: []int64{int64(entry), t.StrideH, t.Stride, 1}}
	for b := range t.Batch {
		l.runs = append(l.runs, run{size * int(int64(b)*t.StrideB), l.bytes, size * entry})
		l.bytes += size * entry
	}
	return l
}

// ofSequences is a mask of some of the sequences alone.
func ofSequences(m *core.BlockMask, first, count int) *core.BlockMask {
	if first == 0 && count == len(m.Sequences) {
		return m
	}
	part := core.NewBlockMask(m.BlockSize, m.Heads, m.Sequences[first:first+count])
	for s := first; s < first+count; s++ {
		for h := range m.Heads {
			for i := range m.Sequences[s].QueryBlocks {
				part.Append(m.Row(s, h, i))
			}
		}
	}
	return part
}
