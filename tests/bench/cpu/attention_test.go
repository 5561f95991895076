// Package cpu measures the kernels of hardware/cpu:
//
//	go test -run - -bench . -count 6 ./tests/bench/cpu
//
// GFLOP/s count the products of kept pairs of positions, causal, packing
// included. attention.py beside this compares with PyTorch.
package cpu

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cpu"
)

const heads, kvHeads, blockSize = 4, 2, 128

// problem is one causal sequence of n tokens.
func problem(n, dim int, d hardware.Dtype) *hardware.Problem {
	r := rand.New(rand.NewPCG(1, 1))
	matrices := func(count int) []hardware.Matrix {
		var list []hardware.Matrix
		for range count {
			data := make([]byte, n*dim*d.Size())
			for i := range n * dim {
				x := math.Float32bits(float32(r.NormFloat64()))
				if d == hardware.Float32 {
					*(*uint32)(unsafe.Pointer(&data[4*i])) = x
				} else {
					*(*uint16)(unsafe.Pointer(&data[2*i])) = uint16(x >> 16)
				}
			}
			list = append(list, hardware.Matrix{Data: unsafe.Pointer(&data[0]), Dtype: d, Rows: n, Cols: dim, Stride: dim})
		}
		return list
	}
	q := hardware.Sequence{Query: matrices(heads), Key: matrices(kvHeads), Value: matrices(kvHeads), Output: matrices(heads)}
	return &hardware.Problem{Sequences: []hardware.Sequence{q}, Scale: 1 / math.Sqrt(float64(dim)), Causal: true}
}

// masks keep the diagonal, column 0 and others by chance; it says which share
// of the causal blocks that is.
func masks(n int, density float64) ([]hardware.Blocks, float64) {
	r := rand.New(rand.NewPCG(2, 2))
	blocks := n / blockSize
	all, kept := float64(heads*blocks*(blocks+1)/2), 0
	chance := (density*all/heads - float64(2*blocks-1)) / (all/heads - float64(2*blocks-1))
	var list []hardware.Blocks
	for range heads {
		m := hardware.Blocks{Size: blockSize, RowPtr: []int64{0}}
		for i := range blocks {
			for j := range i + 1 {
				if j == 0 || j == i || r.Float64() < chance {
					m.Columns = append(m.Columns, int32(j))
				}
			}
			m.RowPtr = append(m.RowPtr, int64(len(m.Columns)))
		}
		kept += len(m.Columns)
		list = append(list, m)
	}
	return list, float64(kept) / all
}

var dtypes = map[string]hardware.Dtype{"float32": hardware.Float32, "bfloat16": hardware.BFloat16}

func each(b *testing.B, f func(b *testing.B, backend hardware.Backend, p *hardware.Problem, n, dim int)) {
	for _, isa := range cpu.Available() {
		if isa == "serial" {
			continue
		}
		backend, err := cpu.Open(isa)
		if err != nil {
			b.Fatal(err)
		}
		for _, dtype := range []string{"float32", "bfloat16"} {
			for _, dim := range []int{64, 128} {
				n := 8192
				p := problem(n, dim, dtypes[dtype])
				b.Run(fmt.Sprintf("isa=%s/dtype=%s/dim=%d/n=%d", isa, dtype, dim, n), func(b *testing.B) { f(b, backend, p, n, dim) })
			}
		}
	}
}

func prepare(b *testing.B, backend hardware.Backend, p *hardware.Problem) hardware.Session {
	s, err := backend.Prepare(context.Background(), p)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func attend(b *testing.B, backend hardware.Backend, p *hardware.Problem, m []hardware.Blocks) {
	s := prepare(b, backend, p)
	defer s.Close()
	if err := s.Attend(context.Background(), m); err != nil {
		b.Fatal(err)
	}
}

// report gives the rate of 4*dim operations for each pair, pairs in each
// operation: of the wall clock, and of the processor time that was had, which
// says more on a machine that does other things too.
func report(b *testing.B, before time.Duration, pairs float64, dim, products int) {
	work := pairs * float64(2*products*dim) * float64(b.N) / 1e9
	b.ReportMetric(work/b.Elapsed().Seconds(), "GFLOP/s")
	b.ReportMetric(work/(processorTime()-before).Seconds(), "GFLOP/cpu-s")
}

// processorTime is what all threads of the process have had so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func BenchmarkDense(b *testing.B) {
	each(b, func(b *testing.B, backend hardware.Backend, p *hardware.Problem, n, dim int) {
		before := processorTime()
		for b.Loop() {
			attend(b, backend, p, nil)
		}
		report(b, before, heads*float64(n)*float64(n)/2, dim, 2)
	})
}

func BenchmarkSparse(b *testing.B) {
	each(b, func(b *testing.B, backend hardware.Backend, p *hardware.Problem, n, dim int) {
		m, density := masks(n, 0.1)
		before := processorTime()
		for b.Loop() {
			attend(b, backend, p, m)
		}
		b.ReportMetric(density, "density")
		report(b, before, heads*float64(n)*float64(n)/2*density, dim, 2)
	})
}

func BenchmarkPrepare(b *testing.B) {
	each(b, func(b *testing.B, backend hardware.Backend, p *hardware.Problem, n, dim int) {
		for b.Loop() {
			prepare(b, backend, p).Close()
		}
	})
}

func BenchmarkRepresentative(b *testing.B) {
	each(b, func(b *testing.B, backend hardware.Backend, p *hardware.Problem, n, dim int) {
		s := prepare(b, backend, p)
		defer s.Close()
		before := processorTime()
		for b.Loop() {
			if _, err := s.Representative(context.Background(), blockSize); err != nil {
				b.Fatal(err)
			}
		}
		report(b, before, heads*blockSize*float64(n), dim, 1)
	})
}

// Four random rows of each query block: what the probe strategy asks for.
func BenchmarkRowMass(b *testing.B) {
	each(b, func(b *testing.B, backend hardware.Backend, p *hardware.Problem, n, dim int) {
		s := prepare(b, backend, p)
		defer s.Close()
		var sets []hardware.RowSet
		for h := range heads {
			set := hardware.RowSet{Head: h}
			for row := 17; row < n; row += blockSize / 4 {
				set.Rows = append(set.Rows, int32(row))
			}
			sets = append(sets, set)
		}
		before := processorTime()
		for b.Loop() {
			if _, err := s.RowMass(context.Background(), sets, blockSize); err != nil {
				b.Fatal(err)
			}
		}
		report(b, before, heads*float64(n/32)*float64(n)/2, dim, 1)
	})
}
