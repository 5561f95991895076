package wire

import (
	"slices"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

const (
	rowPtrSize = 8
	columnSize = 4
)

// MaskSize is the number of bytes that the numbers of a mask take.
func MaskSize(rows, columns int64) int64 { return (rows+1)*rowPtrSize + columns*columnSize }

// EncodeMask writes the numbers of a mask to memory, which is 8-byte aligned,
// and describes it. The caller says where the memory lies.
func EncodeMask(mask *core.BlockMask, memory []byte) (*pb.BlockMask, error) {
	rows, columns := int64(len(mask.RowPtr))-1, int64(len(mask.Columns))
	if size := MaskSize(rows, columns); size > int64(len(memory)) {
		return nil, core.Errorf(core.ErrUnsupported, "block mask of %d bytes: there is room for %d", size, len(memory)).
			WithHint("use a larger block_size")
	}
	rowPtr, cols := maskMemory(memory, rows, columns)
	copy(rowPtr, mask.RowPtr)
	copy(cols, mask.Columns)
	m := &pb.BlockMask{BlockSize: int32(mask.BlockSize), Heads: int32(mask.Heads), Columns: columns}
	m.Sequences = make([]*pb.BlockExtent, len(mask.Sequences))
	for i, s := range mask.Sequences {
		m.Sequences[i] = &pb.BlockExtent{
			FirstQueryBlock: int64(s.FirstQueryBlock), QueryBlocks: int64(s.QueryBlocks), KeyBlocks: int64(s.KeyBlocks),
		}
	}
	return m, nil
}

// DecodeMask reads a mask whose numbers lie at the start of memory, which it
// shares. The caller validates the mask against its request.
func DecodeMask(m *pb.BlockMask, memory []byte) (*core.BlockMask, error) {
	mask := &core.BlockMask{BlockSize: int(m.GetBlockSize()), Heads: int(m.GetHeads())}
	mask.Sequences = make([]core.BlockExtent, len(m.GetSequences()))
	rows := int64(0)
	for i, s := range m.GetSequences() {
		extent, err := decodeExtent(s)
		if err != nil {
			return nil, err
		}
		mask.Sequences[i] = extent
		// Below 2^31 each and checked every time, they cannot overflow.
		if rows += int64(extent.QueryBlocks) * max(int64(mask.Heads), 0); rows*rowPtrSize > int64(len(memory)) {
			return nil, core.Invalid("", "message: block mask of more than %d rows in %d bytes", rows, len(memory))
		}
	}
	columns := m.GetColumns()
	if columns < 0 || columns > int64(len(memory)) || MaskSize(rows, columns) > int64(len(memory)) {
		return nil, core.Invalid("", "message: block mask of %d rows and %d columns in %d bytes", rows, columns, len(memory))
	}
	if uintptr(unsafe.Pointer(unsafe.SliceData(memory)))%rowPtrSize != 0 {
		return nil, core.Invalid("", "message: block mask is not %d-byte aligned", rowPtrSize)
	}
	mask.RowPtr, mask.Columns = maskMemory(memory, rows, columns)
	return mask, nil
}

func decodeExtent(m *pb.BlockExtent) (core.BlockExtent, error) {
	// A query before the start of its sequence lies in a negative block.
	first, err := count("first_query_block", m.GetFirstQueryBlock(), -maxCount)
	if err != nil {
		return core.BlockExtent{}, err
	}
	queries, err := count("query_blocks", m.GetQueryBlocks(), 0)
	if err != nil {
		return core.BlockExtent{}, err
	}
	keys, err := count("key_blocks", m.GetKeyBlocks(), 0)
	return core.BlockExtent{FirstQueryBlock: first, QueryBlocks: queries, KeyBlocks: keys}, err
}

// maskMemory views memory that is large enough and aligned.
func maskMemory(memory []byte, rows, columns int64) ([]int64, []int32) {
	base := unsafe.Pointer(unsafe.SliceData(memory))
	rowPtr := unsafe.Slice((*int64)(base), rows+1)
	if columns == 0 { // their place may be the end of the memory, where nothing may point
		return rowPtr, nil
	}
	return rowPtr, unsafe.Slice((*int32)(unsafe.Add(base, (rows+1)*rowPtrSize)), columns)
}

// CheckMask checks that a mask lies on the block grid of a valid request and
// holds what kernels rely on.
func CheckMask(mask *core.BlockMask, req *core.AttentionRequest) error {
	if heads := req.Query.Dim(1); mask.Heads != heads {
		return core.Invalid("", "block mask of %d heads: want %d, the query heads", mask.Heads, heads)
	}
	return checkGrid(mask, req)
}

// CheckCallersMask is CheckMask of a mask that may have one head for all.
func CheckCallersMask(mask *core.BlockMask, req *core.AttentionRequest) error {
	if mask.Heads == 1 {
		return checkGrid(mask, req)
	}
	return CheckMask(mask, req)
}

// checkGrid checks a mask whose heads are right: the validation walks them.
func checkGrid(mask *core.BlockMask, req *core.AttentionRequest) error {
	if sequences := len(req.Extents()); len(mask.Sequences) != sequences {
		return core.Invalid("", "block mask of %d sequences: want %d", len(mask.Sequences), sequences)
	}
	if err := mask.Validate(req.Causal); err != nil {
		return err
	}
	if grid := req.BlockExtents(mask.BlockSize); !slices.Equal(mask.Sequences, grid) {
		return core.Invalid("", "block mask over the grid %v: want %v", mask.Sequences, grid)
	}
	return nil
}
