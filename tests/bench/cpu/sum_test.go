package cpu

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

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
				before := cpuTime(b)
				for b.Loop() {
					if _, err := backend.WeightedSum(context.Background(), out, in, weights, false, 0); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((cpuTime(b)-before)/float64(b.N)/1e6, "cpu-ms/op")
			})
		}
	}
}

// Eight bfloat16 checkpoints of 32 Mi parameters and a base. Bytes are those read.
func BenchmarkDifferences(b *testing.B) {
	const n, sources = 16 << 20, 8
	random := rand.New(rand.NewPCG(1, 1))
	vector := func() hardware.Vector {
		data := make([]uint16, n)
		for i := range data {
			data[i] = uint16(math.Float32bits(float32(0.02*random.NormFloat64())) >> 16)
		}
		return hardware.Vector{Data: unsafe.Pointer(&data[0]), Dtype: hardware.VectorBFloat16, Len: n}
	}
	base := vector()
	d, pair := hardware.Differences{Base: &base}, hardware.Differences{}
	sparse := hardware.SparseSum{Factor: 1, Scale: 1, Density: 1, Consensus: true, Normalise: true}
	for range sources {
		d.In = append(d.In, vector())
		sparse.Weights, sparse.Low, sparse.High = append(sparse.Weights, 1), append(sparse.Low, 0.02), append(sparse.High, float32(math.Inf(1)))
	}
	pair.In = d.In[:2]
	random50 := sparse
	random50.Density, random50.Factor, random50.Consensus, random50.Normalise = 0.5, 2, false, false
	random50.Low = make([]float32, sources)
	var first, second []hardware.Walk
	for s := range sources {
		first = append(first, hardware.Walk{Source: s, Known: 32, Shift: 20, Counts: make([]int64, 1<<12)})
		second = append(second, hardware.Walk{Source: s, Prefix: math.Float32bits(0.02), Known: 20, Shift: 8, Counts: make([]int64, 1<<12)})
	}
	ranked := hardware.RankedSum{Weights: sparse.Weights, Chance: make([]float64, 1280), Scale: 1, Consensus: true, Normalise: true}
	rows := n / len(ranked.Chance) * len(ranked.Chance)
	for k := range ranked.Chance {
		ranked.Chance[k] = 0.4 + 0.2*float64(k)/1279
	}
	whole := hardware.Differences{In: make([]hardware.Vector, sources), Base: &hardware.Vector{Data: base.Data, Dtype: base.Dtype, Len: int64(rows)}}
	for s := range whole.In {
		whole.In[s] = d.In[s]
		whole.In[s].Len = int64(rows)
	}
	spread := hardware.Walk{Known: 32, Shift: 20, Counts: make([]int64, 1<<12)}
	out := vector()
	kept := out
	kept.Len = int64(rows)
	ctx := context.Background()
	for _, isa := range cpu.Available() {
		if isa == "serial" {
			continue
		}
		backend, err := cpu.Open(isa)
		if err != nil {
			b.Fatal(err)
		}
		for name, run := range map[string]func() ([]int64, error){
			"products of 2":      func() ([]int64, error) { return backend.Products(ctx, pair, make([]float64, 4)) },
			"products of 8":      func() ([]int64, error) { return backend.Products(ctx, d, make([]float64, 64)) },
			"magnitudes, first":  func() ([]int64, error) { return backend.Magnitudes(ctx, d, first) },
			"magnitudes, second": func() ([]int64, error) { return backend.Magnitudes(ctx, d, second) },
			"sparse, ties":       func() ([]int64, error) { return backend.Sparse(ctx, out, d, &sparse) },
			"sparse, dare":       func() ([]int64, error) { return backend.Sparse(ctx, out, d, &random50) },
			"ranked, della":      func() ([]int64, error) { return backend.Ranked(ctx, kept, whole, &ranked) },
			"variances":          func() ([]int64, error) { return backend.Variances(ctx, d, spread) },
			"squares":            func() ([]int64, error) { return backend.Squares(ctx, d, 0.0004, make([]float64, sources)) },
			"majority":           func() ([]int64, error) { return backend.Majority(ctx, out, d, 0.0004, sparse.Weights) },
		} {
			b.Run(fmt.Sprintf("isa=%s/%s", isa, name), func(b *testing.B) {
				b.SetBytes(2 * n * sources)
				before := cpuTime(b)
				for b.Loop() {
					if _, err := run(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((cpuTime(b)-before)/float64(b.N)/n/sources, "cpu-ns/element")
			})
		}
	}
}

// cpuTime is what this process has used, in nanoseconds, whoever else runs.
func cpuTime(b *testing.B) float64 {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return float64(used.Utime.Nano() + used.Stime.Nano())
}
