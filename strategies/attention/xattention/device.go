package xattention

import (
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// selectOnDevice is selectBlocks on a GPU: nothing waits for the device.
func selectOnDevice(call *kernel.DeviceCall, p *kernel.Part) (*kernel.DeviceSelection, error) {
	if !call.Request.Causal {
		return &kernel.DeviceSelection{Pattern: "dense", Reason: notCausal}, nil
	}
	stride := call.Params.Int("stride")
	if !call.Tiled() || !cuda.HasStride(stride) {
		return kernel.OnHost(call, p)
	}
	mask, err := call.Work.SelectXAttention(cuda.XAttention{Chunk: call.Chunk(p), Threshold: call.PerHead("threshold"),
		Stride: stride, Norm: float32(call.Params.Float("norm"))})
	if err != nil {
		return nil, err
	}
	return &kernel.DeviceSelection{Mask: &mask, Pattern: "antidiagonal"}, nil
}
