// Package custom attends to the blocks that the caller names.
package custom

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:         "custom",
		Summary:      "the blocks of the caller's mask",
		Parameters:   kernel.WithCoverage(nil),
		Capabilities: core.Capabilities{ChunkRule: "same"},
		Notes: []string{
			"A mask of one head holds for every query head.",
			"With coverage enforce the mask's blocks are kept, and as many others as the promise takes; those depend on how the prompt is cut into chunks.",
		},
	}, selectBlocks, selectOnDevice)
}

func selectOnDevice(call *kernel.DeviceCall, _ *kernel.Part) (*kernel.DeviceSelection, error) {
	mask := call.Request.Mask
	if mask == nil {
		return nil, noMask()
	}
	return &kernel.DeviceSelection{Masked: mask, Pattern: "custom"}, nil
}

func noMask() error {
	return core.Invalid("attention.custom", "no mask: want the blocks to attend to").
		WithHint("pass mask= a BlockMask, or a bool array [heads, q_blocks, k_blocks] with block_size=")
}

func selectBlocks(_ context.Context, call *kernel.Call) (*core.Selection, error) {
	mask := call.Request.Mask
	if mask == nil {
		return nil, noMask()
	}
	if err := mask.Validate(call.Request.Causal); err != nil {
		return nil, err
	}
	return &core.Selection{Mask: mask.Broadcast(call.Heads)}, nil
}
