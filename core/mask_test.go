package core

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core/tensor"
)

func request(t *testing.T, batch, heads, kvHeads, qLen, kLen, dim int64) *AttentionRequest {
	t.Helper()
	q, err := tensor.Make(tensor.Float32, batch, heads, qLen, dim)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := tensor.Make(tensor.Float32, batch, kvHeads, kLen, dim)
	if err != nil {
		t.Fatal(err)
	}
	return &AttentionRequest{Query: q, Key: kv, Value: kv, Causal: true}
}

// A mask that was made dense and back is the same mask.
func TestDenseMaskSurvivesTheRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kLen := rapid.Int64Range(1, 300).Draw(rt, "k_len")
		qLen := rapid.Int64Range(1, kLen).Draw(rt, "q_len")
		req := request(t, 1, 2, 1, qLen, kLen, 8)
		req.QueryOffset = []int64{kLen - qLen}
		grid := req.BlockExtents(16)
		want := NewBlockMask(16, 2, grid)
		dense := make([]byte, 2*grid[0].QueryBlocks*grid[0].KeyBlocks)
		for row := range 2 * grid[0].QueryBlocks {
			var columns []int32
			for c := range min(grid[0].KeyBlocks, grid[0].FirstQueryBlock+row%grid[0].QueryBlocks+1) {
				if rapid.Bool().Draw(rt, "kept") {
					columns = append(columns, int32(c))
					dense[row*grid[0].KeyBlocks+c] = 1
				}
			}
			want.Append(columns)
		}
		if err := want.Validate(true); err != nil {
			rt.Fatal(err)
		}
		got, err := MaskFromDense(dense, [4]int{1, 2, grid[0].QueryBlocks, grid[0].KeyBlocks}, 16, req)
		if err != nil {
			rt.Fatal(err)
		}
		if !got.Equal(want) {
			rt.Fatalf("got %v, want %v", got, want)
		}
	})
}

// Every visible pair of a query and a key lies in a tile of the dense mask, and
// every tile holds at least one.
func TestDenseMaskCoversWhatIsVisible(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kLen := rapid.Int64Range(1, 120).Draw(rt, "k_len")
		qLen := rapid.Int64Range(1, kLen).Draw(rt, "q_len")
		start := rapid.Int64Range(0, kLen-1).Draw(rt, "k_start")
		end := rapid.Int64Range(start, kLen).Draw(rt, "k_end")
		offset := rapid.Int64Range(0, kLen-qLen).Draw(rt, "q_offset")
		req := request(t, 1, 1, 1, qLen, kLen, 8)
		req.QueryOffset, req.KeyStart, req.KeyEnd = []int64{offset}, []int64{start}, []int64{end}
		if err := req.Validate(); err != nil {
			rt.Fatal(err)
		}
		mask := DenseMask(16, 1, req.BlockExtents(16), true)
		if err := mask.Validate(true); err != nil {
			rt.Fatal(err)
		}
		tiles := make(map[[2]int64]bool)
		for i := range mask.Sequences[0].QueryBlocks {
			for _, c := range mask.Row(0, 0, i) {
				tiles[[2]int64{int64(mask.Sequences[0].FirstQueryBlock + i), int64(c)}] = true
			}
		}
		seen := make(map[[2]int64]bool)
		for i := range qLen {
			m := offset + i
			for n := start; n < end && n <= m; n++ {
				if m >= end {
					break
				}
				tile := [2]int64{(m - start) / 16, (n - start) / 16}
				if !tiles[tile] {
					rt.Fatalf("pair (%d, %d) lies in no tile", m, n)
				}
				seen[tile] = true
			}
		}
		if len(seen) != len(tiles) {
			rt.Fatalf("%d tiles, %d of them hold a visible pair", len(tiles), len(seen))
		}
	})
}

func TestMaskValidate(t *testing.T) {
	grid := []BlockExtent{{QueryBlocks: 2, KeyBlocks: 2}}
	cases := []struct {
		name string
		mask BlockMask
	}{
		{"block size", BlockMask{BlockSize: 10, Heads: 1, Sequences: grid, RowPtr: []int64{0, 1, 2}, Columns: []int32{0, 0}}},
		{"row count", BlockMask{BlockSize: 16, Heads: 1, Sequences: grid, RowPtr: []int64{0, 1}, Columns: []int32{0}}},
		{"falling pointers", BlockMask{BlockSize: 16, Heads: 1, Sequences: grid, RowPtr: []int64{0, 3, 2}, Columns: []int32{0, 1}}},
		{"repeated column", BlockMask{BlockSize: 16, Heads: 1, Sequences: grid, RowPtr: []int64{0, 1, 3}, Columns: []int32{0, 1, 1}}},
		{"beyond the diagonal", BlockMask{BlockSize: 16, Heads: 1, Sequences: grid, RowPtr: []int64{0, 1, 2}, Columns: []int32{1, 1}}},
		{"beyond the grid", BlockMask{BlockSize: 16, Heads: 1, Sequences: grid, RowPtr: []int64{0, 1, 2}, Columns: []int32{0, 2}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.mask.Validate(true); !errors.Is(err, &Error{Kind: ErrInvalidArgument}) {
				t.Fatalf("got %v, want invalid_argument", err)
			}
		})
	}
}
