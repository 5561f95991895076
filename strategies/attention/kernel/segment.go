package kernel

import (
	"context"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// segment is the part of a sequence that is chosen for by itself.
type segment struct {
	sequence   int
	start, end int // query rows
}

// chooseBySegment asks the strategy once, with each segment of each sequence as
// a sequence that ends there, and joins what it chose.
func (c *Call) chooseBySegment(ctx context.Context, size int, choose Selector) (*core.Selection, error) {
	if block := c.Params.Int("block_size"); block == 0 || size%block != 0 {
		return nil, core.Invalid(c.info.ID(), "segment %d, block_size %d: want a multiple of it", size, block)
	}
	segments := c.segments(size)
	parts := &Call{Request: c.Request, Params: c.Params, Heads: c.Heads, info: c.info, kernel: c.kernel}
	problem := *c.Problem
	parts.Problem, problem.Sequences = &problem, nil
	for _, s := range segments {
		problem.Sequences = append(problem.Sequences, cut(&c.Problem.Sequences[s.sequence], s, c.Request.Causal))
	}
	if err := parts.prepare(ctx); err != nil {
		return nil, err
	}
	defer parts.Close()
	chosen, err := parts.ask(ctx, choose)
	if err != nil {
		return nil, err
	}
	c.notes = append(c.notes, parts.notes...)
	for i, s := range segments { // the last of each sequence stays
		for h := range c.Heads {
			m := parts.measured[parts.Slot(i, h)]
			c.measured[c.Slot(s.sequence, h)] = measurement{first: s.start + m.first, lse: m.lse}
		}
	}
	return c.join(segments, chosen)
}

// segments cuts every sequence at the multiples of size in position.
func (c *Call) segments(size int) []segment {
	var all []segment
	for i := range c.Problem.Sequences {
		s := &c.Problem.Sequences[i]
		rows := s.Query[0].Rows
		for start := 0; start < rows; {
			end := min(rows, ((s.Offset+start)/size+1)*size-s.Offset)
			all = append(all, segment{sequence: i, start: start, end: end})
			start = end
		}
	}
	return all
}

// cut views a segment as a sequence; causal queries see no key after it.
func cut(s *hardware.Sequence, part segment, causal bool) hardware.Sequence {
	out := hardware.Sequence{Query: slices.Clone(s.Query), Key: slices.Clone(s.Key), Value: slices.Clone(s.Value), Offset: s.Offset + part.start}
	for h := range out.Query {
		out.Query[h] = rowsFrom(out.Query[h], part.start, part.end)
	}
	if !causal {
		return out
	}
	for h := range out.Key {
		keys := min(out.Key[h].Rows, s.Offset+part.end)
		out.Key[h].Rows, out.Value[h].Rows = keys, keys
	}
	return out
}

// join puts the rows of the segments of each sequence one after another.
func (c *Call) join(segments []segment, chosen *core.Selection) (*core.Selection, error) {
	if chosen.Mask == nil {
		return c.Dense("dense", chosen.Reason), nil
	}
	whole := &core.Selection{Reason: chosen.Reason, Mask: core.NewBlockMask(chosen.Mask.BlockSize, c.Heads, c.grid(chosen.Mask.BlockSize))}
	for sequence := range c.Problem.Sequences {
		for h := range c.Heads {
			report := core.HeadReport{Sequence: sequence, Head: h}
			for i, s := range segments {
				if s.sequence != sequence {
					continue
				}
				for row := range chosen.Mask.Sequences[i].QueryBlocks {
					whole.Mask.Append(chosen.Mask.Row(i, h, row))
				}
				addReport(&report, chosen.Heads[i*c.Heads+h])
			}
			report.Density = ratio(report.Kept, report.Blocks)
			whole.Heads = append(whole.Heads, report)
		}
	}
	if rows := whole.Mask.Rows(); rows != len(whole.Mask.RowPtr)-1 {
		return nil, core.Errorf(core.ErrInternal, "%d mask rows of segments for %d query blocks", len(whole.Mask.RowPtr)-1, rows)
	}
	return whole, nil
}

// addReport adds the report of a segment to that of its head. A pattern that
// changes along the prompt is told as a change.
func addReport(to *core.HeadReport, part core.HeadReport) {
	switch {
	case to.Pattern == "":
		to.Pattern = part.Pattern
	case to.Pattern != part.Pattern:
		to.Pattern = "mixed"
	}
	to.Kept, to.Blocks, to.BlocksAdded = to.Kept+part.Kept, to.Blocks+part.Blocks, to.BlocksAdded+part.BlocksAdded
	to.JSDistance = part.JSDistance
}
