package flashprefill

import (
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// selectOnDevice is selectBlocks on a GPU: nothing waits for the device.
func selectOnDevice(call *kernel.DeviceCall, p *kernel.Part) (*kernel.DeviceSelection, error) {
	if reason := denseReason(call.Request, call.Params); reason != "" {
		return &kernel.DeviceSelection{Pattern: "dense", Reason: reason}, nil
	}
	if !call.Tiled() {
		return kernel.OnHost(call, p)
	}
	mask, err := call.Work.SelectFlashPrefill(cuda.FlashPrefill{Chunk: call.Chunk(p), Alpha: call.PerHead("alpha"),
		SinkBlocks: call.Params.Int("sink_blocks"), WindowBlocks: call.Params.Int("window_blocks"),
		LastBlocks: call.Params.Int("last_blocks"), MinBlocks: call.Params.Int("min_blocks")})
	if err != nil {
		return nil, err
	}
	return &kernel.DeviceSelection{Mask: &mask, Pattern: "max_threshold"}, nil
}
