package streaming

import (
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// selectOnDevice is selectBlocks on a GPU: nothing waits for the device.
func selectOnDevice(call *kernel.DeviceCall, p *kernel.Part) (*kernel.DeviceSelection, error) {
	if !call.Request.Causal || !call.Tiled() {
		return kernel.OnHost(call, p)
	}
	sinks, near, last := tiles(p.Offset+p.Query.Rows, call.Params.Int("sink"), call.Params.Int("recent"), call.Params.Int("last"))
	mask, err := call.Work.SelectStreaming(cuda.Streaming{Chunk: call.Chunk(p), SinkBlocks: sinks, WindowBlocks: near, LastBlocks: last})
	if err != nil {
		return nil, err
	}
	return &kernel.DeviceSelection{Mask: &mask, Pattern: "streaming"}, nil
}

// tiles are the first key tiles, the nearest to a query tile and the last query
// tiles that the token rule touches; end is the position after the last query.
func tiles(end, sink, recent, last int) (sinks, near, whole int) {
	sinks, near = ceilDiv(sink, cuda.Tile), ceilDiv(recent-1, cuda.Tile)+1 // those of the tile's first query
	if last > 0 {
		whole = ceilDiv(end, cuda.Tile) - max(0, end-last)/cuda.Tile
	}
	return sinks, near, whole
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
