package attention_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cpu"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// BenchmarkSelect times the choice of blocks alone; "dense" times attending to
// everything, which it should be small against.
func BenchmarkSelect(b *testing.B) {
	backend, err := cpu.Open("")
	if err != nil {
		b.Fatal(err)
	}
	k := kernel.New(backend)
	for _, d := range []tensor.Dtype{tensor.Float32, tensor.BFloat16} {
		req := request.Random(1, request.Shape{Batch: 1, Heads: 8, KVHeads: 2, Queries: 16 << 10, Keys: 16 << 10, Dim: 128, Dtype: d})
		b.Run(fmt.Sprint("dense ", d), func(b *testing.B) {
			for b.Loop() {
				if _, err := k.Attend(context.Background(), req, &core.Selection{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		for _, c := range strategies {
			if c.name == "oracle" || c.name == "tri-shape" || c.name == "minference" {
				continue
			}
			b.Run(fmt.Sprint(c.name, " ", d), func(b *testing.B) {
				for b.Loop() {
					if _, err := c.make(k).Select(context.Background(), req); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
