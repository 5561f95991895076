// Package dense attends to every key that is visible.
package dense

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// New makes the strategy on a kernel.
func New(k *kernel.Kernel) core.AttentionStrategy {
	return k.Strategy(core.Info{
		Name:         "dense",
		Summary:      "every visible key: exact attention, the measure of the others",
		Parameters:   []core.Parameter{},
		Capabilities: core.Capabilities{ChunkRule: "same"},
	}, selectBlocks, selectOnDevice)
}

func selectOnDevice(*kernel.DeviceCall, *kernel.Part) (*kernel.DeviceSelection, error) {
	return &kernel.DeviceSelection{Pattern: "dense"}, nil
}

func selectBlocks(_ context.Context, call *kernel.Call) (*core.Selection, error) {
	return call.Dense("dense", ""), nil
}
