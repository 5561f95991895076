// Package oracle keeps the tiles with the most true mass: the fewest that any
// selector of tiles can reach a coverage with. It computes the whole dense
// softmax first, so it is a measure for research and saves no time.
package oracle

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:    "oracle",
		Summary: "the fewest tiles that reach gamma by their true mass: a bound for selectors, slower than dense",
		Parameters: []core.Parameter{
			kernel.Gamma("attention mass each head keeps, as a mean over rows"),
			kernel.TileSide(),
			kernel.Segment(),
		},
		Notes: []string{
			"Column 0 and the diagonal are kept in any case, as by the selectors it is held against.",
			"Chunks: each chunk reaches gamma for its own rows; its tiles need not be those of a one-shot call.",
			kernel.SegmentNote,
		},
	}, selectBlocks, kernel.ByProbes)
}

func selectBlocks(ctx context.Context, call *kernel.Call) (*core.Selection, error) {
	size, err := call.BlockSize()
	if err != nil {
		return nil, err
	}
	tiles, err := tileMass(ctx, call, size)
	if err != nil {
		return nil, err
	}
	return call.Choose(ctx, size, func(h *kernel.Head) error {
		h.Report.Pattern = "oracle"
		h.KeepColumn(0)
		h.KeepSlash(0)
		rows := call.Problem.Sequences[h.Sequence].Query[h.Head].Rows
		keepFewest(h, tiles[call.Slot(h.Sequence, h.Head)], call.Params.FloatAt("gamma", h.Head)*float64(rows))
		return nil
	})
}

// keepFewest adds the heaviest tiles until the kept mass reaches wanted.
func keepFewest(h *kernel.Head, tiles []float32, wanted float64) {
	for at, m := range tiles {
		if h.Kept(at/h.KeyBlocks, at%h.KeyBlocks) {
			wanted, tiles[at] = wanted-float64(m), 0
		}
	}
	if wanted <= 0 {
		return
	}
	count := mass.Cover(tiles, wanted) + 1
	for _, at := range mass.Largest(tiles, min(count, len(tiles))) {
		h.Keep(at/h.KeyBlocks, at%h.KeyBlocks)
	}
}

// blocksAtOnce bounds the memory that the mass of single rows takes.
const blocksAtOnce = 32

// tileMass is the true mass of each tile of each head, added up over the rows
// of its query block.
func tileMass(ctx context.Context, call *kernel.Call, size int) ([][]float32, error) {
	all := make([][]float32, len(call.Problem.Sequences)*call.Heads)
	for slot := range all {
		sequence := &call.Problem.Sequences[slot/call.Heads]
		rows, keyBlocks := sequence.Query[0].Rows, (sequence.Key[0].Rows+size-1)/size
		if rows == 0 || keyBlocks == 0 {
			continue
		}
		blocks := blockRows(sequence.Offset, rows, size)
		all[slot] = make([]float32, len(blocks)*keyBlocks)
		for first := 0; first < len(blocks); first += blocksAtOnce {
			last := min(first+blocksAtOnce, len(blocks))
			sets := make([]hardware.RowSet, last-first)
			for i := range sets {
				sets[i] = hardware.RowSet{Sequence: slot / call.Heads, Head: slot % call.Heads, Rows: blocks[first+i]}
			}
			results, err := call.Prober.RowMass(ctx, sets, size)
			if err != nil {
				return nil, err
			}
			for i, result := range results {
				for at, m := range result.Mass {
					all[slot][(first+i)*keyBlocks+at%keyBlocks] += m
				}
			}
		}
	}
	return all, nil
}

// blockRows lists the rows of each query block.
func blockRows(offset, rows, size int) [][]int32 {
	blocks := make([][]int32, (offset+rows-1)/size-offset/size+1)
	for row := range rows {
		b := (offset+row)/size - offset/size
		blocks[b] = append(blocks[b], int32(row))
	}
	return blocks
}
