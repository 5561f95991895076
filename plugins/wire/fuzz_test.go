package wire

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// FuzzBlockMask decodes masks whose numbers the plugin wrote, and walks those
// that pass as a kernel would: without looking where it steps.
func FuzzBlockMask(f *testing.F) {
	f.Add(int32(16), int32(2), int64(0), int64(3), int64(3), int64(12), true, make([]byte, 200))
	m := core.DenseMask(16, 2, []core.BlockExtent{{QueryBlocks: 3, KeyBlocks: 3}}, true)
	numbers := aligned(int(MaskSize(6, int64(len(m.Columns)))))
	if _, err := EncodeMask(m, numbers); err != nil {
		f.Fatal(err)
	}
	f.Add(int32(16), int32(2), int64(0), int64(3), int64(3), int64(len(m.Columns)), true, numbers)
	f.Add(int32(16), int32(2), int64(0), int64(3), int64(3), int64(len(numbers)-1), true, numbers) // columns of 4 bytes
	outside := bytes.Clone(numbers)
	binary.LittleEndian.PutUint32(outside[len(outside)-4:], 1<<30)
	f.Add(int32(16), int32(2), int64(0), int64(3), int64(3), int64(len(m.Columns)), true, outside)
	f.Add(int32(16), int32(1), int64(0), int64(1), int64(64), int64(30), false, make([]byte, 32)) // no room for the columns
	f.Add(int32(16), int32(1), int64(-1), int64(1), int64(2), int64(1), false, binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Fuzz(func(t *testing.T, blockSize, heads int32, first, queries, keys, columns int64, causal bool, text []byte) {
		memory := aligned(max(8, len(text)&^7))
		copy(memory, text)
		mask, err := DecodeMask(&pb.BlockMask{
			BlockSize: blockSize, Heads: heads, Columns: columns,
			Sequences: []*pb.BlockExtent{{FirstQueryBlock: first, QueryBlocks: queries, KeyBlocks: keys}},
		}, memory)
		if err != nil {
			return
		}
		if size := MaskSize(int64(len(mask.RowPtr))-1, int64(len(mask.Columns))); size > int64(len(memory)) {
			t.Fatalf("a mask of %d bytes in %d", size, len(memory))
		}
		if mask.Validate(causal) != nil {
			return
		}
		seen := make([]bool, min(max(keys, 0), 1<<20))
		for head := range mask.Heads {
			for i := range mask.Sequences[0].QueryBlocks {
				previous := int32(-1)
				for _, c := range mask.Row(0, head, i) {
					if c <= previous || int64(c) >= keys || causal && int64(c) > first+int64(i) {
						t.Fatalf("row %d holds %d after %d: first %d, %d key blocks", i, c, previous, first, keys)
					}
					if int(c) < len(seen) {
						seen[c] = true
					}
					previous = c
				}
			}
		}
	})
}
