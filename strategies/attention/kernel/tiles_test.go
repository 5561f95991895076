package kernel

import (
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"pgregory.net/rapid"
)

// Columns and slashes are kept as if tile by tile.
func TestColumnsAndSlashesAreTheirTiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		extent := core.BlockExtent{
			QueryBlocks: rapid.IntRange(1, 80).Draw(t, "query blocks"), KeyBlocks: rapid.IntRange(1, 150).Draw(t, "key blocks"),
			FirstQueryBlock: rapid.IntRange(0, 80).Draw(t, "first query block"),
		}
		causal, window := rapid.Bool().Draw(t, "causal"), rapid.SampledFrom([]int64{0, 1, 100, 1000}).Draw(t, "window")
		got, want := newTiles(extent, 16, causal, window), newTiles(extent, 16, causal, window)
		for _, n := range rapid.SliceOfN(rapid.IntRange(-3, 160), 0, 8).Draw(t, "columns") {
			got.KeepColumn(n)
			for row := range extent.QueryBlocks {
				want.Keep(row, n)
			}
		}
		for _, n := range rapid.SliceOfN(rapid.IntRange(-3, 160), 0, 8).Draw(t, "slashes") {
			got.KeepSlash(n)
			for row := range extent.QueryBlocks {
				want.Keep(row, want.Diagonal(row)-n)
			}
		}
		if !slices.Equal(got.bits, want.bits) {
			t.Fatalf("%+v: kept %d tiles, want %d", extent, got.Count(), want.Count())
		}
	})
}
