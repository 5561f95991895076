package host

import (
	"context"
	"errors"
	"slices"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

const (
	leastBlockSize = 16
	// maxMaskMemory bounds the room for a mask. Only what is written of it is
	// ever allocated.
	maxMaskMemory = 1 << 30
)

// maskInput puts the caller's mask into shared memory; nil stays nil.
func (c *call) maskInput(ctx context.Context, req *core.AttentionRequest) (*pb.BlockMask, error) {
	mask := req.Mask
	if mask == nil {
		return nil, nil
	}
	if err := wire.CheckCallersMask(mask, req); err != nil {
		return nil, err
	}
	size := wire.MaskSize(int64(len(mask.RowPtr))-1, int64(len(mask.Columns)))
	segment, err := c.segment(ctx, size)
	if err != nil {
		return nil, err
	}
	m, err := wire.EncodeMask(mask, segment.Bytes())
	if err != nil {
		return nil, err
	}
	m.Memory = &pb.MemoryRef{SegmentId: segment.ID(), Generation: segment.Generation(), Size: size}
	return m, nil
}

// maskRoom is shared memory for any mask that can answer req.
func (c *call) maskRoom(ctx context.Context, req *core.AttentionRequest) (*pb.MemoryRef, *shm.Segment, error) {
	size := maskCapacity(req)
	segment, err := c.segment(ctx, size)
	if err != nil {
		return nil, nil, err
	}
	return &pb.MemoryRef{SegmentId: segment.ID(), Generation: segment.Generation(), Size: size}, segment, nil
}

// maskCapacity is the size of the mask that keeps everything.
func maskCapacity(req *core.AttentionRequest) int64 {
	blockSize := max(req.Params.Int("block_size"), leastBlockSize)
	if req.Mask != nil && (req.Mask.BlockSize < blockSize || !req.Params.IsSet("block_size")) {
		blockSize = req.Mask.BlockSize
	}
	heads := float64(req.Query.Dim(1))
	rows, columns := 0.0, 0.0
	for _, s := range req.BlockExtents(blockSize) {
		rows += heads * float64(s.QueryBlocks)
		columns += heads * float64(s.Tiles(req.Causal))
	}
	if rows+columns > maxMaskMemory {
		return maxMaskMemory
	}
	return min(wire.MaskSize(int64(rows), int64(columns)), maxMaskMemory)
}

// takeMask copies a mask out of shared memory and checks the copy, which the
// plugin can no longer change.
func takeMask(m *pb.BlockMask, segment *shm.Segment, req *core.AttentionRequest) (*core.BlockMask, error) {
	if m == nil {
		return nil, nil
	}
	if segment == nil {
		return nil, errors.New("a mask that was not asked for")
	}
	mask, err := wire.DecodeMask(m, segment.Bytes())
	if err != nil {
		return nil, err
	}
	mask.RowPtr, mask.Columns = slices.Clone(mask.RowPtr), slices.Clone(mask.Columns)
	return mask, wire.CheckMask(mask, req)
}
