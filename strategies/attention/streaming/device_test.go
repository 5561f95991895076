package streaming

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// What the device is told keeps the tiles that the CPU keeps.
func TestTilesOfTheDevice(t *testing.T) {
	s := New(kernel.New(backends.Best(t)))
	rapid.Check(t, func(rt *rapid.T) {
		rows, offset := rapid.IntRange(2, 900).Draw(rt, "rows"), rapid.IntRange(0, 900).Draw(rt, "offset")
		sink, recent, last := rapid.IntRange(0, 400).Draw(rt, "sink"), rapid.IntRange(1, 700).Draw(rt, "recent"), rapid.IntRange(0, 1200).Draw(rt, "last")
		end := offset + rows
		req := request.Random(1, request.Shape{Batch: 1, Heads: 1, KVHeads: 1, Queries: rows, Keys: end, Dim: 16})
		req.QueryOffset = []int64{int64(offset)}
		req.Params = core.Params{"sink": int64(sink), "recent": int64(recent), "last": int64(last), "block_size": int64(cuda.Tile)}
		selection, err := s.Select(t.Context(), req)
		if err != nil {
			rt.Fatal(err)
		}
		sinks, near, whole := tiles(end, sink, recent, last)
		extent := req.BlockExtents(cuda.Tile)[0]
		for i := range extent.QueryBlocks {
			position := extent.FirstQueryBlock + i
			kept := map[int]bool{}
			if selection.Mask != nil {
				for _, j := range selection.Mask.Row(0, 0, i) {
					kept[int(j)] = true
				}
			}
			for j := range position + 1 {
				got := j < sinks || j > position-near || i >= extent.QueryBlocks-whole // as the kernel has it
				if want := selection.Mask == nil || kept[j]; got != want {
					rt.Fatalf("tile (%d, %d) of %d rows at %d: kept %v, want %v", position, j, rows, offset, got, want)
				}
			}
		}
	})
}
