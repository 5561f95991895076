package kernel

import (
	"context"
	"math"
	"slices"
	"time"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// attend runs the kernel over what was selected and reports.
func (c *Call) attend(ctx context.Context, selection *core.Selection) (*core.AttentionResponse, error) {
	blocks, err := c.blocks(selection.Mask)
	if err != nil {
		return nil, err
	}
	heads := selection.Heads
	if heads == nil {
		heads = c.describeMask(selection)
	}
	if err := probingOf(c.Request).check(c.info, heads); err != nil {
		return nil, err
	}
	start := time.Now()
	c.clearPadding()
	if err := c.Session.Attend(ctx, blocks); err != nil {
		return nil, err
	}
	if err := c.correct(ctx, blocks); err != nil {
		return nil, err
	}
	attended := time.Since(start) + c.prepared
	response := &core.AttentionResponse{Report: c.report(selection, heads)}
	response.Report.Times.Attend = milliseconds(attended)
	start = time.Now()
	if err := c.measure(ctx, &response.Report, selection.Mask); err != nil {
		return nil, err
	}
	response.Report.Times.Measure = milliseconds(time.Since(start))
	if err := c.countTwice(ctx, blocks); err != nil {
		return nil, err
	}
	if c.Request.WantMask {
		response.Mask = selection.Mask
	}
	return response, nil
}

// blocks views a mask as the backend takes it; nil: everything.
func (c *Call) blocks(mask *core.BlockMask) ([]hardware.Blocks, error) {
	if mask == nil {
		return nil, nil
	}
	if err := mask.Validate(c.Request.Causal); err != nil {
		return nil, err
	}
	grid := c.grid(mask.BlockSize)
	if mask.Heads != c.Heads || !slices.Equal(mask.Sequences, grid) {
		return nil, core.Invalid(c.info.ID(), "block mask of %d heads over %v: want %d heads over %v", mask.Heads, mask.Sequences, c.Heads, grid)
	}
	blocks := make([]hardware.Blocks, 0, len(grid)*c.Heads)
	row := 0
	for s, extent := range grid {
		if c.Problem.Sequences[s].Offset < 0 {
			return nil, core.Errorf(core.ErrUnsupported, "a block mask for queries before the first key of their sequence").
				WithHint("drop the padded queries, or attend densely")
		}
		for range c.Heads {
			blocks = append(blocks, hardware.Blocks{Size: mask.BlockSize, RowPtr: mask.RowPtr[row : row+extent.QueryBlocks+1], Columns: mask.Columns})
			row += extent.QueryBlocks
		}
	}
	return blocks, nil
}

// clearPadding gives queries that belong to no sequence the result of a query
// that sees no key.
func (c *Call) clearPadding() {
	r := c.Request
	if r.CuSeqlens != nil {
		return
	}
	for _, e := range r.Extents() {
		for h := range c.Heads {
			c.clearRows(e.Batch, h, 0, e.QueryStart)
			c.clearRows(e.Batch, h, e.QueryEnd, r.Query.Dim(2))
		}
	}
}

func (c *Call) clearRows(batch, head, start, end int) {
	out := c.Request.Output
	size := int(out.Dtype().Size())
	lse := lseRows(c.lse, batch, head)
	for row := start; row < end; row++ {
		at := (batch*out.Stride(0) + head*out.Stride(1) + row*out.Stride(2)) * size
		clear(unsafe.Slice((*byte)(unsafe.Add(out.Pointer(), at)), out.Dim(3)*size))
		lse[row] = float32(math.Inf(-1))
	}
}

func (c *Call) report(selection *core.Selection, heads []core.HeadReport) core.Report {
	report := core.Report{
		Strategy: c.info.ID(),
		Backend:  c.kernel.backend.Name(),
		Threads:  c.Threads(),
		Heads:    heads,
		Notes:    c.notes,
	}
	report.Precision = core.PrecisionHighest
	if c.Session.Precision() == hardware.High {
		report.Precision = core.PrecisionHigh
	}
	if c.Request.Position != nil {
		report.Position = c.Request.Position.Strategy
	}
	if selection.Reason != "" {
		report.Notes = append(report.Notes, "dense: "+selection.Reason)
	}
	kept, all := int64(0), int64(0)
	for _, h := range report.Heads {
		kept, all = kept+h.Kept, all+h.Blocks
	}
	report.Density = ratio(kept, all)
	return report
}

// describeMask reports on a mask that came without a report of its own.
func (c *Call) describeMask(selection *core.Selection) []core.HeadReport {
	m := selection.Mask
	if m == nil {
		return c.Dense("dense", "").Heads
	}
	var heads []core.HeadReport
	for s, extent := range m.Sequences {
		for h := range m.Heads {
			report := core.HeadReport{Sequence: s, Head: h, Pattern: "custom", Kept: m.Kept(s, h), Blocks: extent.Tiles(c.Request.Causal)}
			report.Density = ratio(report.Kept, report.Blocks)
			heads = append(heads, report)
		}
	}
	return heads
}
