package attention_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cpu"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// BenchmarkSelect times the choice of blocks alone, in percent of attending to
// everything, with the packing of keys, which attending then finds done: of the processor time, which other programs on the
// machine do not count into.
func BenchmarkSelect(b *testing.B) {
	backend, err := cpu.Open("")
	if err != nil {
		b.Fatal(err)
	}
	k := kernel.New(backend)
	for _, n := range []int{8 << 10, 16 << 10, 32 << 10} {
		for _, d := range []tensor.Dtype{tensor.Float32, tensor.BFloat16} {
			req := request.Random(1, request.Shape{Batch: 1, Heads: 8, KVHeads: 2, Queries: n, Keys: n, Dim: 128, Dtype: d})
			var dense, pack time.Duration
			b.Run(fmt.Sprintf("n=%d/%v/dense", n, d), func(b *testing.B) {
				dense = timed(b, func() error {
					_, err := k.Attend(context.Background(), req, &core.Selection{})
					return err
				})
				pack = timed(b, func() error { // the least that a selection does: it opens the call
					forced := *req
					forced.ForceDense = true
					_, err := strategies[0].make(k).Select(context.Background(), &forced)
					return err
				})
			})
			for _, c := range strategies {
				if c.name == "oracle" || c.name == "tri-shape" || c.name == "minference" || c.name == "dense" || dense == 0 {
					continue
				}
				b.Run(fmt.Sprintf("n=%d/%v/%s", n, d, c.name), func(b *testing.B) {
					taken := timed(b, func() error {
						_, err := c.make(k).Select(context.Background(), req)
						return err
					})
					b.ReportMetric(100*float64(taken-pack)/float64(dense), "%dense")
				})
			}
		}
	}
}

// timed is the processor time of one call, the least of three: a benchmark of
// this file is one such measurement, however long the framework wants it.
func timed(b *testing.B, call func() error) time.Duration {
	least := time.Duration(1 << 62)
	for range 3 {
		before := processorTime()
		if err := call(); err != nil {
			b.Fatal(err)
		}
		least = min(least, processorTime()-before)
	}
	return least
}

func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
