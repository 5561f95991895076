package kernel

import (
	"encoding/binary"
	"slices"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// attendMasked attends to tiles that the host knows.
func (c *DeviceCall) attendMasked(p *Part, chosen *DeviceSelection) error {
	first := p.First
	if chosen.OfPart { // made here
		first = 0
	} else if err := c.checkMask(chosen.Masked); err != nil {
		return err
	}
	uploaded, err := c.uploadMask(p, chosen.Masked, first)
	if err != nil {
		return err
	}
	return c.launch(p, uploaded)
}

func (c *DeviceCall) checkMask(mask *core.BlockMask) error {
	if err := mask.Validate(c.Request.Causal); err != nil {
		return err
	}
	if mask.BlockSize%cuda.Tile != 0 {
		return c.Unsupported("a mask of block_size %d, not a multiple of %d,", mask.BlockSize, cuda.Tile)
	}
	grid := c.Request.BlockExtents(mask.BlockSize)
	if mask.Heads != 1 && mask.Heads != c.Heads || !slices.Equal(mask.Sequences, grid) {
		return core.Invalid(c.info.ID(), "block mask of %d heads over %v: want %d heads over %v", mask.Heads, mask.Sequences, c.Heads, grid)
	}
	for _, s := range c.Request.Extents() {
		if s.Offset < 0 {
			return c.Unsupported("a block mask for queries before the first key of their sequence")
		}
	}
	return nil
}

// uploadMask gives the device the rows of a part, in its tiles. first is the
// mask's number of the part's first sequence.
func (c *DeviceCall) uploadMask(p *Part, mask *core.BlockMask, first int) (*cuda.Mask, error) {
	rowPtr, columns := tilesOf(p, mask, first, c.Heads, c.Request.Causal)
	at, err := c.Work.Scratch(4 * (len(rowPtr) + len(columns)))
	if err != nil {
		return nil, err
	}
	split := at + cuda.Address(4*len(rowPtr))
	if err := c.Work.Upload(at, words(rowPtr)); err != nil {
		return nil, err
	}
	return &cuda.Mask{RowPtr: at, Cols: split}, c.Work.Upload(split, words(columns))
}

// tilesOf is a mask over the tiles of a part, every query head by itself.
func tilesOf(p *Part, mask *core.BlockMask, sequence, heads int, causal bool) (rowPtr, columns []int32) {
	ratio := mask.BlockSize / cuda.Tile
	tiles, first := ceilDiv(p.Offset%cuda.Tile+p.Query.Rows, cuda.Tile), p.Offset/cuda.Tile
	keys := ceilDiv(p.Key.Rows, cuda.Tile)
	rowPtr = append(rowPtr, 0)
	for s := sequence; s < sequence+p.Count; s++ {
		for h := range heads {
			if mask.Heads == 1 {
				h = 0
			}
			for t := first; t < first+tiles; t++ {
				limit := keys
				if causal {
					limit = min(limit, t+1)
				}
				for _, block := range mask.Row(s, h, t/ratio-mask.Sequences[s].FirstQueryBlock) {
					for column := int(block) * ratio; column < min((int(block)+1)*ratio, limit); column++ {
						columns = append(columns, int32(column))
					}
				}
				rowPtr = append(rowPtr, int32(len(columns)))
			}
		}
	}
	return rowPtr, columns
}

// words is the bytes of numbers, shared.
func words(numbers []int32) []byte {
	if len(numbers) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&numbers[0])), 4*len(numbers))
}

// describe reports on the heads of a part and takes the mask if it is wanted.
func (c *DeviceCall) describe(p *Part, chosen *DeviceSelection) error {
	if !c.waits && !c.Request.WantMask {
		return nil
	}
	mask, heads, err := c.examine(p, chosen)
	if err != nil {
		return err
	}
	c.kept = append(c.kept, partMask{p.First, p.Count, mask, chosen.Mask != nil && c.complete(mask), chosen.Judges})
	c.report.Heads = append(c.report.Heads, heads...)
	return nil
}

// examine is what was chosen for a part: its mask over the part's sequences,
// nil for everything, and the reports of its heads.
func (c *DeviceCall) examine(p *Part, chosen *DeviceSelection) (*core.BlockMask, []core.HeadReport, error) {
	mask := chosen.Masked
	switch {
	case chosen.Mask != nil:
		var err error
		if mask, err = c.download(*chosen.Mask, c.Request.BlockExtents(cuda.Tile)[p.First:p.First+p.Count]); err != nil {
			return nil, nil, err
		}
	case mask != nil && !chosen.OfPart:
		if err := c.checkMask(mask); err != nil {
			return nil, nil, err
		}
		mask = ofSequences(mask, p.First, p.Count)
	}
	if chosen.Heads != nil {
		return mask, chosen.Heads, nil
	}
	size := cuda.Tile
	if mask != nil {
		size = mask.BlockSize
	}
	heads := make([]core.HeadReport, 0, p.Count*c.Heads)
	for s, extent := range c.Request.BlockExtents(size)[p.First : p.First+p.Count] {
		for h := range c.Heads {
			report := core.HeadReport{Sequence: p.First + s, Head: h, Pattern: chosen.Pattern, Blocks: extent.Tiles(c.Request.Causal)}
			report.Kept = report.Blocks
			if mask != nil {
				report.Kept = mask.Kept(s, min(h, mask.Heads-1))
			}
			report.Density = ratio(report.Kept, report.Blocks)
			heads = append(heads, report)
		}
	}
	if chosen.Describe != nil {
		if err := chosen.Describe(heads); err != nil {
			return nil, nil, err
		}
	}
	return mask, heads, nil
}

// download reads a mask of the device.
func (c *DeviceCall) download(m cuda.Mask, grid []core.BlockExtent) (*core.BlockMask, error) {
	mask := core.NewBlockMask(cuda.Tile, c.Heads, grid)
	rowPtr, err := c.Words(m.RowPtr, mask.Rows()+1)
	if err != nil {
		return nil, err
	}
	if mask.Columns, err = c.Words(m.Cols, int(rowPtr[len(rowPtr)-1])); err != nil {
		return nil, err
	}
	for _, n := range rowPtr[1:] {
		mask.RowPtr = append(mask.RowPtr, int64(n))
	}
	return mask, nil
}

// Words reads numbers of the device; it waits.
func (c *DeviceCall) Words(at cuda.Address, count int) ([]int32, error) {
	raw := make([]byte, 4*count)
	if err := c.Work.Download(raw, at); err != nil {
		return nil, err
	}
	numbers := make([]int32, count)
	for i := range numbers {
		numbers[i] = int32(binary.NativeEndian.Uint32(raw[4*i:]))
	}
	return numbers, nil
}

// partMask is what was kept of some sequences; a nil mask: everything.
type partMask struct {
	first, count int
	mask         *core.BlockMask // over the part
	complete     bool            // it keeps every tile with a visible pair
	judges       [][]int32       // rows of each head that it was chosen by
}

// complete says whether a mask keeps every tile with a visible pair.
func (c *DeviceCall) complete(mask *core.BlockMask) bool {
	visible := int64(0)
	for _, extent := range mask.Sequences {
		all := newTiles(extent, mask.BlockSize, c.Request.Causal, c.Request.Window)
		for row := range extent.QueryBlocks {
			low, high := all.Visible(row)
			visible += int64((high - low) * mask.Heads)
		}
	}
	return int64(len(mask.Columns)) == visible
}

// everything says whether nothing was left out.
func (c *DeviceCall) everything() bool {
	return !slices.ContainsFunc(c.kept, func(k partMask) bool { return k.mask != nil && !k.complete })
}

// noteEverything tells that masks kept everything.
func (c *DeviceCall) noteEverything() {
	if c.everything() && slices.ContainsFunc(c.kept, func(k partMask) bool { return k.complete }) {
		c.Note("dense: " + keepsEverything)
	}
}

// joined is the mask of the call, nil when every part keeps everything.
// Sequences without a part see nothing.
func (c *DeviceCall) joined() *core.BlockMask {
	if c.everything() {
		return nil
	}
	size := cuda.Tile
	for _, k := range c.kept {
		if k.mask != nil {
			size = k.mask.BlockSize
		}
	}
	grid := c.Request.BlockExtents(size)
	mask := core.NewBlockMask(size, c.Heads, grid)
	everything := core.DenseMask(size, 1, grid, c.Request.Causal)
	for s, extent := range grid {
		for h := range c.Heads {
			for row := range extent.QueryBlocks {
				mask.Append(c.keptRow(everything, s, h, row))
			}
		}
	}
	return mask
}

func (c *DeviceCall) keptRow(everything *core.BlockMask, sequence, head, row int) []int32 {
	for _, k := range c.kept {
		switch {
		case sequence < k.first || sequence >= k.first+k.count:
			continue
		case k.mask == nil:
			return everything.Row(sequence, 0, row)
		}
		return k.mask.Row(sequence-k.first, min(head, k.mask.Heads-1), row)
	}
	return nil
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
