package kernel

import (
	"math/bits"

	"github.com/trivium-ml/trivium/core"
)

// Tiles is the set of tiles that one head keeps, a bit each. Rows are query
// blocks counted from the sequence's first, as are the rows of a BlockMask;
// columns are key blocks. Tiles without a visible pair are never in the set.
type Tiles struct {
	core.BlockExtent
	BlockSize int
	causal    bool
	window    int64
	words     int // of a row
	bits      []uint64
}

func newTiles(extent core.BlockExtent, blockSize int, causal bool, window int64) *Tiles {
	words := (extent.KeyBlocks + 63) / 64
	return &Tiles{BlockExtent: extent, BlockSize: blockSize, causal: causal, window: window,
		words: words, bits: make([]uint64, words*extent.QueryBlocks)}
}

// Visible is the range [low, high) of key blocks that query block row can see.
func (t *Tiles) Visible(row int) (low, high int) {
	position := t.FirstQueryBlock + row
	high = t.KeyBlocks
	if t.causal {
		high = min(high, position+1)
	}
	if t.window > 0 {
		// The block's first query sees the farthest: to window-1 tokens before it.
		first := int64(position)*int64(t.BlockSize) - t.window + 1 // key position
		low = int(max(0, first) / int64(t.BlockSize))
	}
	return min(low, high), high
}

// Diagonal is the key block at the positions of query block row.
func (t *Tiles) Diagonal(row int) int { return t.FirstQueryBlock + row }

// Keep adds a tile, unless nothing in it is visible.
func (t *Tiles) Keep(row, column int) {
	low, high := t.Visible(row)
	if column >= low && column < high {
		t.set(row, column)
	}
}

// set adds a tile that is known to be visible.
func (t *Tiles) set(row, column int) { t.bits[row*t.words+column/64] |= 1 << (column % 64) }

// KeepColumn adds a key block for every query block.
func (t *Tiles) KeepColumn(column int) {
	if t.window > 0 || column < 0 || column >= t.KeyBlocks {
		for row := range t.QueryBlocks {
			t.Keep(row, column)
		}
		return
	}
	first := 0
	if t.causal {
		first = max(0, column-t.FirstQueryBlock)
	}
	for row := first; row < t.QueryBlocks; row++ {
		t.set(row, column)
	}
}

// KeepSlash adds the tiles at a distance in blocks.
func (t *Tiles) KeepSlash(distance int) {
	if t.window > 0 || distance < 0 {
		for row := range t.QueryBlocks {
			t.Keep(row, t.Diagonal(row)-distance)
		}
		return
	}
	first := max(0, distance-t.FirstQueryBlock)
	for row := first; row < min(t.QueryBlocks, t.KeyBlocks-t.FirstQueryBlock+distance); row++ {
		t.set(row, t.Diagonal(row)-distance)
	}
}

// KeepDiagonal adds the tiles that pairs at a distance in tokens lie in: two of
// each row, unless the distance is a whole number of blocks.
func (t *Tiles) KeepDiagonal(distance int) {
	t.KeepSlash(distance / t.BlockSize)
	if distance%t.BlockSize != 0 {
		t.KeepSlash(distance/t.BlockSize + 1)
	}
}

// KeepRange adds key blocks [low, high) for one query block.
func (t *Tiles) KeepRange(row, low, high int) {
	first, limit := t.Visible(row)
	for column := max(low, first); column < min(high, limit); column++ {
		t.bits[row*t.words+column/64] |= 1 << (column % 64)
	}
}

// KeepRow adds everything that a query block can see.
func (t *Tiles) KeepRow(row int) { t.KeepRange(row, 0, t.KeyBlocks) }

// KeepAll adds everything that is visible.
func (t *Tiles) KeepAll() {
	for row := range t.QueryBlocks {
		t.KeepRow(row)
	}
}

// Kept says whether a tile is in the set.
func (t *Tiles) Kept(row, column int) bool {
	return t.bits[row*t.words+column/64]>>(column%64)&1 == 1
}

// Count is the number of tiles in the set.
func (t *Tiles) Count() int64 {
	n := 0
	for _, w := range t.bits {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

// Complete says whether every tile with a visible pair is in the set.
func (t *Tiles) Complete() bool {
	visible := int64(0)
	for row := range t.QueryBlocks {
		low, high := t.Visible(row)
		visible += int64(high - low)
	}
	return t.Count() == visible
}

// AppendRow appends the kept columns of a row, sorted.
func (t *Tiles) AppendRow(columns []int32, row int) []int32 {
	for w, word := range t.bits[row*t.words : (row+1)*t.words] {
		for ; word != 0; word &= word - 1 {
			columns = append(columns, int32(w*64+bits.TrailingZeros64(word)))
		}
	}
	return columns
}
