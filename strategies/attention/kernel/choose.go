package kernel

import (
	"context"
	"runtime"
	"strings"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/internal/parallel"
)

// Head is one query head of one sequence while its tiles are chosen.
type Head struct {
	*Tiles
	Sequence, Head int
	Report         core.HeadReport
	reason         string
}

// Dense keeps every tile, and says why in the report.
func (h *Head) Dense(pattern, reason string) {
	h.KeepAll()
	h.Report.Pattern, h.reason = pattern, reason
}

// Dense selects everything for all heads. Patterns that keep everything start
// with "dense".
func (c *Call) Dense(pattern, reason string) *core.Selection {
	selection := &core.Selection{Reason: reason}
	for s, extent := range c.grid(defaultBlock) {
		for h := range c.Heads {
			tiles := extent.Tiles(c.Request.Causal)
			selection.Heads = append(selection.Heads, core.HeadReport{Sequence: s, Head: h, Pattern: pattern,
				Kept: tiles, Blocks: tiles, Density: 1})
		}
	}
	return selection
}

// defaultBlock is the tile side that densities of dense calls are counted in.
const defaultBlock = 128

// Longest is the number of keys of the longest sequence.
func (c *Call) Longest() int {
	longest := 0
	for _, s := range c.Problem.Sequences {
		longest = max(longest, s.Key[0].Rows)
	}
	return longest
}

// Threads is how many goroutines selecting may use.
func (c *Call) Threads() int {
	if c.Request.Threads > 0 {
		return c.Request.Threads
	}
	return runtime.GOMAXPROCS(0)
}

// BlockSize is the parameter of that name.
func (c *Call) BlockSize() (int, error) {
	size := c.Params.Int("block_size")
	if size < 16 || size > 1024 || size%16 != 0 {
		return 0, core.Invalid(c.info.ID(), "block_size %d: want a multiple of 16 from 16 to 1024", size)
	}
	return size, nil
}

// Choose makes a selection head by head, several at a time. choose keeps tiles
// and names its pattern in the head's report; sequences of one query are dense
// without asking. A selection in which every head keeps everything has no mask,
// so that it costs no more than dense.
func (c *Call) Choose(ctx context.Context, blockSize int, choose func(h *Head) error) (*core.Selection, error) {
	grid := c.grid(blockSize)
	heads := make([]chosen, len(grid)*c.Heads)
	err := parallel.Each(ctx, c.Threads(), len(heads), func(slot int) error {
		h := &Head{Sequence: slot / c.Heads, Head: slot % c.Heads}
		h.Tiles = newTiles(grid[h.Sequence], blockSize, c.Request.Causal, c.Request.Window)
		h.Report.Sequence, h.Report.Head = h.Sequence, h.Head
		if c.Problem.Sequences[h.Sequence].Query[h.Head].Rows == 1 {
			h.Dense("dense_decode", "one query per sequence: decoding is dense")
		} else if h.QueryBlocks > 0 {
			if err := choose(h); err != nil {
				return err
			}
		}
		heads[slot] = compact(h)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.assemble(grid, blockSize, heads), nil
}

// chosen is a Head reduced to compressed rows.
type chosen struct {
	report  core.HeadReport
	reason  string
	dense   bool // it keeps everything
	columns []int32
	ends    []int64 // of each row in columns
}

func compact(h *Head) chosen {
	r := chosen{report: h.Report, reason: h.reason, dense: h.Complete(), columns: make([]int32, 0, h.Count()), ends: make([]int64, h.QueryBlocks)}
	for row := range r.ends {
		r.columns = h.AppendRow(r.columns, row)
		r.ends[row] = int64(len(r.columns))
	}
	r.report.Kept = int64(len(r.columns))
	return r
}

func (c *Call) assemble(grid []core.BlockExtent, blockSize int, heads []chosen) *core.Selection {
	selection := &core.Selection{Heads: make([]core.HeadReport, len(heads))}
	mask := core.NewBlockMask(blockSize, c.Heads, grid)
	dense, reasons := true, map[string]bool{}
	for i, h := range heads {
		base := int64(len(mask.Columns))
		mask.Columns = append(mask.Columns, h.columns...)
		for _, end := range h.ends {
			mask.RowPtr = append(mask.RowPtr, base+end)
		}
		h.report.Blocks = grid[i/c.Heads].Tiles(c.Request.Causal)
		h.report.Density = ratio(h.report.Kept, h.report.Blocks)
		selection.Heads[i] = h.report
		dense = dense && h.dense
		if h.reason != "" && !reasons[h.reason] {
			reasons[h.reason] = true
			selection.Reason = strings.TrimPrefix(selection.Reason+"; "+h.reason, "; ")
		}
	}
	if !dense {
		selection.Mask = mask
	} else if selection.Reason == "" {
		selection.Reason = keepsEverything
	}
	return selection
}

const keepsEverything = "every head keeps every tile"

func ratio(part, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(part) / float64(all)
}
