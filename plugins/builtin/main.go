// Command builtin is the plugin that carries every built-in strategy. A host
// starts it once for each kind of strategy in use.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cpu"
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/plugins/sdk"
	"github.com/trivium-ml/trivium/strategies/all"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// envISA names the instruction set of the CPU kernels; unset is the best there is.
const envISA = "TRIVIUM_ISA"

func main() {
	backend, err := cpu.Open(os.Getenv(envISA))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lanes := cuda.NewLanes(cuda.FromEnvironment())
	k := kernel.New(backend).WithCrossover(crossover()).OnCUDA(lanes)
	var strategies []core.Strategy
	strategies = append(strategies, all.Attention(k)...)
	strategies = append(strategies, all.Position()...)
	strategies = append(strategies, all.Merge(tile.New(backend))...)
	sdk.Serve(sdk.Config{Strategies: strategies, Kernel: k, Devices: devices{lanes}})
}

// crossover is what `trivium tune` left in the user's cache. A file that cannot
// be read is said and not used.
func crossover() *kernel.Crossover {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	c, err := kernel.ReadCrossover(filepath.Join(cache, "trivium", "crossover.json"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return c
}
