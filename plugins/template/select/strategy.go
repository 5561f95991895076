package main

import (
	"context"

	"github.com/trivium-ml/trivium/core"
)

// Strategy keeps the nearest tiles and the first one. It only selects: Trivium's
// own kernel attends, at its own speed.
type Strategy struct{}

var _ core.AttentionStrategy = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "plugin-name", Kind: core.Attention, License: "Apache-2.0", Version: "0.1.0",
		Summary: "the nearest tiles, and the first one",
		Parameters: []core.Parameter{
			{Name: "recent", Type: core.Int, Default: int64(2), Unit: "tiles", Min: core.Bound(1), Doc: "nearest tiles that a query sees"},
			{Name: "block_size", Type: core.Int, Default: int64(64), Unit: "tokens", Min: core.Bound(16), Max: core.Bound(1024), Doc: "side of a tile, a multiple of 16"},
		},
		Capabilities: core.Capabilities{GQA: true, Varlen: true, Chunked: true, Deterministic: true, ChunkRule: "same"},
	}
}

// Select implements core.AttentionStrategy.
func (Strategy) Select(ctx context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	size, recent := req.Params.Int("block_size"), req.Params.Int("recent")
	if size%16 != 0 {
		return nil, core.Invalid("attention.plugin-name", "block_size %d: want a multiple of 16", size)
	}
	heads, sequences := req.Query.Dim(1), req.BlockExtents(size)
	mask := core.NewBlockMask(size, heads, sequences)
	for _, s := range sequences {
		for range heads {
			for i := range s.QueryBlocks {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				mask.Append(row(s.FirstQueryBlock+i, s.KeyBlocks, recent, req.Causal))
			}
		}
	}
	return &core.Selection{Mask: mask}, nil
}

// row is the tiles that query block i keeps: rising numbers, none after i if causal.
func row(i, keyBlocks, recent int, causal bool) []int32 {
	last := keyBlocks - 1
	if causal {
		last = min(i, last)
	}
	columns := []int32{0}
	for c := max(1, i-recent+1); c <= last; c++ {
		columns = append(columns, int32(c))
	}
	return columns
}
