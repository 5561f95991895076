package cpu

import (
	"context"
	"fmt"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cpu"
)

// Eight bfloat16 checkpoints of 32 Mi parameters into one, and into twelve.
// Bytes are those read and written.
func BenchmarkWeightedSum(b *testing.B) {
	const n, sources = 32 << 20, 8
	vector := func() hardware.Vector {
		data := make([]uint16, n)
		for i := range data {
			data[i] = 0x3c00 + uint16(i%1000)
		}
		return hardware.Vector{Data: unsafe.Pointer(&data[0]), Dtype: hardware.VectorBFloat16, Len: n}
	}
	var in []hardware.Vector
	for range sources {
		in = append(in, vector())
	}
	for _, isa := range cpu.Available() {
		if isa == "serial" {
			continue
		}
		backend, err := cpu.Open(isa)
		if err != nil {
			b.Fatal(err)
		}
		for _, candidates := range []int{1, 12} {
			b.Run(fmt.Sprintf("isa=%s/candidates=%d", isa, candidates), func(b *testing.B) {
				var out []hardware.Vector
				var weights [][]float64
				for range candidates {
					out = append(out, vector())
					weights = append(weights, []float64{0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125})
				}
				b.SetBytes(int64(2 * n * (sources + candidates)))
				for b.Loop() {
					if _, err := backend.WeightedSum(context.Background(), out, in, weights, false, 0); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
