package cpu

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// alikeRows fills float32 with numbers that a sort by their first bits leaves in
// one heap: next to each other, beside a few that are far away.
func alikeRows(r *rand.Rand, n int) hardware.Vector {
	v := newVector(hardware.VectorFloat32, n)
	x := unsafe.Slice((*float32)(v.Data), n)
	for i := range x {
		x[i] = math.Float32frombits(math.Float32bits(1) + uint32(r.IntN(1<<14)))
		if r.IntN(100) == 0 {
			x[i] = float32(math.Ldexp(1, r.IntN(200)-100))
		}
	}
	return v.Vector
}

func TestRankedSameBytes(t *testing.T) {
	eachVector(t, 21, func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend) {
		row := pick(r, 1, 2+r.IntN(100), 1+r.IntN(6000), n)
		n = max(1, n/row) * row
		d := someDifferences(r, n, true)
		switch r.IntN(4) {
		case 0: // few values, most differences 0
			base := *d.Base
			for s := range d.In {
				d.In[s] = base
			}
			d.In = append(d.In, newVector(hardware.VectorFloat8E4M3, n).Vector)
		case 1:
			zero := hardware.Vector{Data: unsafe.Pointer(&make([]float32, n)[0]), Dtype: hardware.VectorFloat32, Len: int64(n)}
			d.Base = &zero
			d.In = append(d.In, alikeRows(r, n))
		}
		s := &hardware.RankedSum{Chance: make([]float64, row), Scale: pick(r, 1, 0.7), Seed: r.Uint64(), Element: int64(r.IntN(1 << 20)),
			Consensus: r.IntN(2) == 0, Normalise: r.IntN(2) == 0}
		for range d.In {
			s.Weights = append(s.Weights, pick(r, 1, r.NormFloat64(), 0))
		}
		for k := range s.Chance {
			s.Chance[k] = 0.3 + 0.5*float64(k)/float64(row)
		}
		dtype := hardware.VectorDtype(r.IntN(6))
		got, want := newVector(dtype, n), newVector(dtype, n)
		counts := must(t)(b.Ranked(context.Background(), got.Vector, d, s))
		expected := must(t)(serial.Ranked(context.Background(), want.Vector, d, s))
		if !bytes.Equal(got.raw, want.raw) {
			t.Fatalf("result of dtype %d, rows of %d, differs from serial at byte %d", dtype, row, firstDifference(got.raw, want.raw))
		}
		if !slices.Equal(counts, expected) {
			t.Fatalf("%v elements are not finite, serial counts %v", counts, expected)
		}
	})
}

func TestVariancesSameBytes(t *testing.T) {
	eachVector(t, 22, func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend) {
		d := someDifferences(r, n, true)
		known := pick(r, 32, 20)
		walk := func(b hardware.Backend) []int64 {
			w := hardware.Walk{Prefix: 0x3b000000, Known: known, Shift: known - 12, Counts: make([]int64, 1<<12)}
			must(t)(b.Variances(context.Background(), d, w))
			return w.Counts
		}
		if !slices.Equal(walk(b), walk(serial)) {
			t.Fatal("counts differ from serial's")
		}
		limit := pick(r, 0, float32(0.001), float32(math.Inf(1)))
		weights := make([]float64, len(d.In))
		for s := range weights {
			weights[s] = pick(r, r.Float64(), 0)
		}
		got, want := make([]float64, len(d.In)), make([]float64, len(d.In))
		counts := must(t)(b.Squares(context.Background(), d, limit, got))
		expected := must(t)(serial.Squares(context.Background(), d, limit, want))
		for s := range got {
			if math.Float64bits(got[s]) != math.Float64bits(want[s]) && !(math.IsNaN(got[s]) && math.IsNaN(want[s])) {
				t.Fatalf("sum %d is %v, serial's %v", s, got[s], want[s])
			}
		}
		if !slices.Equal(counts, expected) {
			t.Fatalf("%v elements are not finite, serial counts %v", counts, expected)
		}
		dtype := hardware.VectorDtype(r.IntN(6))
		out, serials := newVector(dtype, n), newVector(dtype, n)
		must(t)(b.Majority(context.Background(), out.Vector, d, limit, weights))
		must(t)(serial.Majority(context.Background(), serials.Vector, d, limit, weights))
		if !bytes.Equal(out.raw, serials.raw) {
			t.Fatalf("result of dtype %d differs from serial at byte %d", dtype, firstDifference(out.raw, serials.raw))
		}
	})
}

// The squares of finite numbers add up to the bit, which the test above, whose
// numbers are of all kinds, seldom sees.
func TestSquaresOfFinite(t *testing.T) {
	eachVector(t, 23, func(t *testing.T, r *rand.Rand, n int, b, serial hardware.Backend) {
		var d hardware.Differences
		for range 3 + r.IntN(9) {
			v := newVector(hardware.VectorFloat32, n)
			for i, x := 0, unsafe.Slice((*float32)(v.Data), n); i < n; i++ {
				x[i] = float32(r.NormFloat64())
			}
			d.In = append(d.In, v.Vector)
		}
		d.Base = &d.In[len(d.In)-1]
		d.In = d.In[:len(d.In)-1]
		got, want := make([]float64, len(d.In)), make([]float64, len(d.In))
		must(t)(b.Squares(context.Background(), d, 0.5, got))
		must(t)(serial.Squares(context.Background(), d, 0.5, want))
		if !slices.Equal(got, want) || got[0] == 0 && n > 100 {
			t.Fatalf("sums %v, serial's %v", got, want)
		}
	})
}

func TestRankedRefusals(t *testing.T) {
	b, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	d := someDifferences(rand.New(rand.NewPCG(1, 1)), 12, true)
	out := newVector(hardware.VectorFloat32, 12).Vector
	r := hardware.RankedSum{Weights: make([]float64, len(d.In)), Chance: make([]float64, 5)}
	if _, err := b.Ranked(context.Background(), out, d, &r); err == nil {
		t.Error("12 elements in rows of 5 are taken")
	}
	if _, err := b.Variances(context.Background(), hardware.Differences{In: d.In}, hardware.Walk{Known: 32, Shift: 20, Counts: make([]int64, 1<<12)}); err == nil {
		t.Error("variances without a base are taken")
	}
	if _, err := b.Squares(context.Background(), d, 0, nil); err == nil {
		t.Error("squares into nothing are taken")
	}
	if _, err := b.Majority(context.Background(), newVector(hardware.VectorFloat32, 11).Vector, d, 0, r.Weights); err == nil {
		t.Error("a shorter result is taken")
	}
}
