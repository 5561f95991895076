package core

// MaskFromDense makes a mask from one byte per tile, row-major [batch, heads,
// query blocks, key blocks], for the sequences of a valid request; batch 1 and
// heads 1 stand for all. Tiles that no query of a causal request sees are left
// out, since they hold nothing.
func MaskFromDense(dense []byte, shape [4]int, blockSize int, req *AttentionRequest) (*BlockMask, error) {
	if blockSize < 1 {
		return nil, Invalid("", "block_size %d: want a multiple of 16 from 16 to 1024", blockSize)
	}
	grid := req.BlockExtents(blockSize)
	batch, heads := shape[0], shape[1]
	if batch != 1 && batch != len(grid) || heads != 1 && heads != req.Query.Dim(1) {
		return nil, Invalid("", "mask for %d sequences and %d heads: the call has %d and %d", batch, heads, len(grid), req.Query.Dim(1))
	}
	rows, columns := 0, 0
	for _, g := range grid {
		rows, columns = max(rows, g.QueryBlocks), max(columns, g.KeyBlocks)
	}
	if shape[2] != rows || shape[3] != columns {
		return nil, Invalid("", "mask of %d x %d blocks: want %d x %d, as many as blocks of %d make", shape[2], shape[3], rows, columns, blockSize)
	}
	mask := NewBlockMask(blockSize, req.Query.Dim(1), grid)
	var kept []int32
	for s, g := range grid {
		for head := range mask.Heads {
			plane := (min(s, batch-1)*heads + min(head, heads-1)) * rows
			for i := range g.QueryBlocks {
				limit := g.KeyBlocks
				if req.Causal {
					limit = min(limit, g.FirstQueryBlock+i+1)
				}
				kept = kept[:0]
				for c := range limit {
					if dense[(plane+i)*columns+c] != 0 {
						kept = append(kept, int32(c))
					}
				}
				mask.Append(kept)
			}
		}
	}
	return mask, nil
}
