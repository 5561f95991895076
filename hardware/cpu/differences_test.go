package cpu

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/hardware"
)

// someDifferences draws sources, and a base if wanted, of any dtypes.
func someDifferences(r *rand.Rand, n int, based bool) hardware.Differences {
	var d hardware.Differences
	draw := func() hardware.Vector {
		v := newVector(hardware.VectorDtype(r.IntN(6)), n)
		v.fill(r)
		return v.Vector
	}
	for range 1 + r.IntN(9) {
		d.In = append(d.In, draw())
	}
	if based {
		base := draw()
		d.Base = &base
	}
	return d
}

// alikePair draws two sources of one dtype and no base, which are read where they lie.
func alikePair(r *rand.Rand, n int) hardware.Differences {
	dtype := hardware.VectorDtype(r.IntN(6))
	var d hardware.Differences
	for range 2 {
		v := newVector(dtype, n)
		v.fill(r)
		d.In = append(d.In, v.Vector)
	}
	return d
}

// eachVector compares an operation of every instruction set with serial's.
func eachVector(t *testing.T, salt uint64, compare func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend)) {
	serial, err := Open("serial")
	if err != nil {
		t.Fatal(err)
	}
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for seed := uint64(1); seed <= 40 && !t.Failed(); seed++ {
			r := rand.New(rand.NewPCG(seed, salt))
			n := pick(r, 1+r.IntN(70), 1+r.IntN(2000), 65536+r.IntN(2000))
			t.Logf("seed %d, %d elements", seed, n)
			compare(t, r, n, b, serial)
		}
	})
}

func must(t *testing.T) func(counts []int64, err error) []int64 {
	return func(counts []int64, err error) []int64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return counts
	}
}

func TestProductsSameBytes(t *testing.T) {
	eachVector(t, 11, func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend) {
		d := someDifferences(r, n, r.IntN(2) == 0)
		if r.IntN(2) == 0 {
			d = alikePair(r, n)
		}
		got, want := make([]float64, len(d.In)*len(d.In)), make([]float64, len(d.In)*len(d.In))
		counts := must(t)(b.Products(context.Background(), d, got))
		expected := must(t)(serial.Products(context.Background(), d, want))
		for i := range got {
			if math.Float64bits(got[i]) != math.Float64bits(want[i]) && !(math.IsNaN(got[i]) && math.IsNaN(want[i])) {
				t.Fatalf("product %d is %v, serial's %v", i, got[i], want[i])
			}
		}
		if !slices.Equal(counts, expected) {
			t.Fatalf("%v elements are not finite, serial counts %v", counts, expected)
		}
	})
}

func TestMagnitudesSameCounts(t *testing.T) {
	eachVector(t, 12, func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend) {
		d := someDifferences(r, n, r.IntN(2) == 0)
		walks := func() []hardware.Walk {
			var list []hardware.Walk
			for s := range d.In {
				known := pick(rand.New(rand.NewPCG(uint64(s), uint64(n))), 32, 20)
				list = append(list, hardware.Walk{Source: s, Prefix: 0x3d400000, Known: known, Shift: known - 12, Counts: make([]int64, 1<<12)})
			}
			return list
		}
		got, want := walks(), walks()
		must(t)(b.Magnitudes(context.Background(), d, got))
		must(t)(serial.Magnitudes(context.Background(), d, want))
		for i := range got {
			if !slices.Equal(got[i].Counts, want[i].Counts) {
				t.Fatalf("walk %d counts other than serial", i)
			}
		}
	})
}

func TestSparseSameBytes(t *testing.T) {
	eachVector(t, 13, func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend) {
		d := someDifferences(r, n, true)
		s := &hardware.SparseSum{Factor: 1.25, Scale: pick(r, 1, 0.7), Density: pick(r, 1, 0.4), Seed: r.Uint64(), Element: int64(r.IntN(1 << 20)),
			Consensus: r.IntN(2) == 0, Normalise: r.IntN(2) == 0}
		for range d.In {
			s.Weights = append(s.Weights, pick(r, 1, r.NormFloat64(), 0))
			s.Low = append(s.Low, pick(r, 0, float32(0.02)))
			s.High = append(s.High, pick(r, float32(math.Inf(1)), 0.1))
		}
		dtype := hardware.VectorDtype(r.IntN(6))
		got, want := newVector(dtype, n), newVector(dtype, n)
		counts := must(t)(b.Sparse(context.Background(), got.Vector, d, s))
		expected := must(t)(serial.Sparse(context.Background(), want.Vector, d, s))
		if !bytes.Equal(got.raw, want.raw) {
			t.Fatalf("result of dtype %d differs from serial at byte %d: %+v", dtype, firstDifference(got.raw, want.raw), s)
		}
		if !slices.Equal(counts, expected) {
			t.Fatalf("%v elements are not finite, serial counts %v", counts, expected)
		}
	})
}
