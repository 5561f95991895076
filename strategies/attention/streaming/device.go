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
	end := p.Offset + p.Query.Rows
	mask, err := call.Work.SelectStreaming(cuda.Streaming{Chunk: call.Chunk(p),
		SinkBlocks:   ceilDiv(call.Params.Int("sink"), cuda.Tile),
		WindowBlocks: ceilDiv(call.Params.Int("recent")-1, cuda.Tile) + 1, // of the block's first query
		LastBlocks:   ceilDiv(end, cuda.Tile) - max(0, end-call.Params.Int("last"))/cuda.Tile})
	if err != nil {
		return nil, err
	}
	return &kernel.DeviceSelection{Mask: &mask, Pattern: "streaming"}, nil
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
