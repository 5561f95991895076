package kernel

import "github.com/trivium-ml/trivium/core"

// Parameters that several strategies have, and that mean the same in each.

// TileSide is the parameter that Call.BlockSize reads.
func TileSide() core.Parameter {
	return core.Parameter{Name: "block_size", Type: core.Int, Default: int64(128), Unit: "tokens", Min: core.Bound(16), Max: core.Bound(1024),
		Doc: "side of a tile, a multiple of 16"}
}

// Gamma is a share of the attention mass, of each head.
func Gamma(doc string) core.Parameter {
	return core.Parameter{Name: "gamma", Type: core.Float, Default: 0.9, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), PerHead: true, Doc: doc}
}

// Segment makes a strategy which looks at the end of a prompt independent of
// how the prompt is cut into chunks.
func Segment() core.Parameter {
	return core.Parameter{Name: "segment", Type: core.Int, Default: int64(0), Unit: "tokens", Min: core.Bound(0),
		Doc: "choose for each so many tokens of the prompt by themselves, as if they were chunks; a multiple of block_size; 0: for the whole call"}
}

// SegmentNote is what Segment does to chunks.
const SegmentNote = "With a segment, chunks that end at its multiples keep exactly the tiles of the one-shot call."
