package core

import (
	"fmt"
	"slices"
)

// BlockMask says which tiles of queries and keys are attended to: compressed
// rows over (sequence, head, query block). It is the one format of strategies,
// kernels, pictures and files.
//
// Blocks are cut from the start of each sequence, not of the tensor: query
// block I holds the queries at positions [I*BlockSize, (I+1)*BlockSize) and
// key block J the keys at those positions. So a chunk, a padded row and a
// packed segment select the same blocks as the whole sequence by itself.
type BlockMask struct {
	BlockSize int
	Heads     int // query heads
	Sequences []BlockExtent
	// RowPtr has one entry more than there are rows; row r holds
	// Columns[RowPtr[r]:RowPtr[r+1]], sorted, without repeats. Rows are ordered
	// by sequence, head, query block.
	RowPtr  []int64
	Columns []int32
}

// BlockExtent is the part of the block grid that one sequence covers.
type BlockExtent struct {
	FirstQueryBlock int `json:"first_query_block"` // index of the sequence's row 0: position of its first query / BlockSize
	QueryBlocks     int `json:"query_blocks"`
	KeyBlocks       int `json:"key_blocks"`
}

// NewBlockMask makes a mask without tiles, to be filled by Append in order.
func NewBlockMask(blockSize, heads int, sequences []BlockExtent) *BlockMask {
	return &BlockMask{BlockSize: blockSize, Heads: heads, Sequences: sequences, RowPtr: []int64{0}}
}

// Append adds the next row; columns must be sorted and without repeats.
func (m *BlockMask) Append(columns []int32) {
	m.Columns = append(m.Columns, columns...)
	m.RowPtr = append(m.RowPtr, int64(len(m.Columns)))
}

// FirstRow is the index in RowPtr of query block 0 of a sequence and head.
func (m *BlockMask) FirstRow(sequence, head int) int {
	row := 0
	for _, s := range m.Sequences[:sequence] {
		row += s.QueryBlocks * m.Heads
	}
	return row + head*m.Sequences[sequence].QueryBlocks
}

// Rows is the number of rows the mask must have.
func (m *BlockMask) Rows() int {
	rows := 0
	for _, s := range m.Sequences {
		rows += s.QueryBlocks * m.Heads
	}
	return rows
}

// Row is the kept key blocks of a query block, counted from the sequence's
// first; it shares the mask's memory.
func (m *BlockMask) Row(sequence, head, queryBlock int) []int32 {
	r := m.FirstRow(sequence, head) + queryBlock
	return m.Columns[m.RowPtr[r]:m.RowPtr[r+1]]
}

// Kept is the number of tiles kept for a sequence and head.
func (m *BlockMask) Kept(sequence, head int) int64 {
	first := m.FirstRow(sequence, head)
	return m.RowPtr[first+m.Sequences[sequence].QueryBlocks] - m.RowPtr[first]
}

// Tiles is the number of tiles that hold at least one visible pair: the
// denominator of density.
func (s BlockExtent) Tiles(causal bool) int64 {
	if !causal {
		return int64(s.QueryBlocks) * int64(s.KeyBlocks)
	}
	tiles := int64(0)
	for i := range s.QueryBlocks {
		tiles += int64(min(s.FirstQueryBlock+i+1, s.KeyBlocks))
	}
	return tiles
}

// Density is kept tiles over all (causal) tiles, over all sequences and heads.
func (m *BlockMask) Density(causal bool) float64 {
	all := int64(0)
	for _, s := range m.Sequences {
		all += s.Tiles(causal) * int64(m.Heads)
	}
	if all == 0 {
		return 0
	}
	return float64(len(m.Columns)) / float64(all)
}

// Validate checks what a kernel relies on: the row count, pointers that rise,
// and columns that are sorted, unique, inside the grid and, when causal, not
// beyond the diagonal.
func (m *BlockMask) Validate(causal bool) error {
	if m.BlockSize < 16 || m.BlockSize > 1024 || m.BlockSize%16 != 0 {
		return Invalid("", "block mask: block_size %d: want a multiple of 16 from 16 to 1024", m.BlockSize)
	}
	if m.Heads < 1 || len(m.RowPtr) != m.Rows()+1 || m.RowPtr[0] != 0 || m.RowPtr[len(m.RowPtr)-1] != int64(len(m.Columns)) {
		return Invalid("", "block mask: %d row pointers and %d columns do not fit %d rows", len(m.RowPtr), len(m.Columns), m.Rows())
	}
	row := 0
	for s, extent := range m.Sequences {
		for head := range m.Heads {
			for i := range extent.QueryBlocks {
				if err := m.validateRow(row, extent, i, causal); err != nil {
					return Invalid("", "block mask: sequence %d, head %d, query block %d: %s", s, head, i, err)
				}
				row++
			}
		}
	}
	return nil
}

func (m *BlockMask) validateRow(row int, extent BlockExtent, i int, causal bool) error {
	low, high := m.RowPtr[row], m.RowPtr[row+1]
	if low < 0 || high < low || high > int64(len(m.Columns)) {
		return fmt.Errorf("row pointers %d, %d", low, high)
	}
	limit := extent.KeyBlocks
	if causal {
		limit = min(limit, extent.FirstQueryBlock+i+1)
	}
	previous := int32(-1)
	for _, c := range m.Columns[low:high] {
		if c <= previous || int(c) >= limit {
			return fmt.Errorf("key block %d after %d: want rising numbers below %d", c, previous, limit)
		}
		previous = c
	}
	return nil
}

// Equal says whether two masks keep the same tiles of the same grid.
func (m *BlockMask) Equal(o *BlockMask) bool {
	return m.BlockSize == o.BlockSize && m.Heads == o.Heads && slices.Equal(m.Sequences, o.Sequences) &&
		slices.Equal(m.RowPtr, o.RowPtr) && slices.Equal(m.Columns, o.Columns)
}

// DenseMask keeps every (causal) tile.
func DenseMask(blockSize, heads int, sequences []BlockExtent, causal bool) *BlockMask {
	m := NewBlockMask(blockSize, heads, sequences)
	for _, s := range sequences {
		for range heads {
			for i := range s.QueryBlocks {
				limit := s.KeyBlocks
				if causal {
					limit = min(limit, s.FirstQueryBlock+i+1)
				}
				for c := range limit {
					m.Columns = append(m.Columns, int32(c))
				}
				m.RowPtr = append(m.RowPtr, int64(len(m.Columns)))
			}
		}
	}
	return m
}

// Broadcast gives each of heads the rows of a mask of one head; another mask
// stays as it is.
func (m *BlockMask) Broadcast(heads int) *BlockMask {
	if m.Heads != 1 || heads == 1 {
		return m
	}
	all := NewBlockMask(m.BlockSize, heads, m.Sequences)
	for s, extent := range m.Sequences {
		for range heads {
			for i := range extent.QueryBlocks {
				all.Append(m.Row(s, 0, i))
			}
		}
	}
	return all
}
