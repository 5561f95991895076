package host

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core/tensor"
)

// Patterns of which one bit more or less is another class.
var numbers = map[tensor.Dtype]struct{ finite, infinite, nan []uint64 }{
	tensor.Float16:  {[]uint64{0, 0x8000, 0x7bff, 0xfbff, 0x03ff, 1}, []uint64{0x7c00, 0xfc00}, []uint64{0x7c01, 0xfe00, 0x7fff, 0xffff}},
	tensor.BFloat16: {[]uint64{0, 0x8000, 0x7f7f, 0xff7f, 0x007f, 1}, []uint64{0x7f80, 0xff80}, []uint64{0x7f81, 0xffc0, 0x7fff, 0xffff}},
	tensor.Float32: {[]uint64{0, 1 << 31, uint64(math.Float32bits(math.MaxFloat32)), uint64(math.Float32bits(-math.MaxFloat32)), 1},
		[]uint64{0x7f80_0000, 0xff80_0000}, []uint64{0x7f80_0001, 0xffc0_0000, 0xffff_ffff}},
	tensor.Float64: {[]uint64{0, 1 << 63, math.Float64bits(math.MaxFloat64), math.Float64bits(-math.MaxFloat64), 1},
		[]uint64{math.Float64bits(math.Inf(1)), math.Float64bits(math.Inf(-1))}, []uint64{0x7ff<<52 | 1, math.Float64bits(math.NaN()), math.MaxUint64}},
}

// TestHolds puts one number into finite ones, anywhere in any layout.
func TestHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dtype := rapid.SampledFrom([]tensor.Dtype{tensor.Float16, tensor.BFloat16, tensor.Float32, tensor.Float64}).Draw(t, "dtype")
		of := numbers[dtype]
		l := layouts.Draw(t, "layout")
		l.size = dtype.Size()
		memory := make([]byte, l.span()+8)
		for i := range memory { // gaps are not looked at
			memory[i] = 0xff
		}
		memory = memory[:l.span()]
		put := func(at []int64, x uint64) {
			var word [8]byte
			binary.LittleEndian.PutUint64(word[:], x)
			copy(memory[l.offset(at):], word[:l.size])
		}
		l.each(func(at []int64) { put(at, rapid.SampledFrom(of.finite).Draw(t, "finite")) })
		x, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(memory)), dtype, l.shape, l.strides, tensor.CPU)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Release()
		if holds(x, notFinite) || holds(x, isNaN) || holds(x, isNaNOrInf) {
			t.Fatal("found something in finite numbers")
		}
		at := make([]int64, len(l.shape))
		for i, n := range l.shape {
			at[i] = rapid.Int64Range(0, n-1).Draw(t, "index")
		}
		infinite, plus := of.infinite[0], true
		if rapid.Bool().Draw(t, "minus") {
			infinite, plus = of.infinite[1], false
		}
		put(at, infinite)
		if !holds(x, notFinite) || holds(x, isNaN) || holds(x, isNaNOrInf) != plus {
			t.Fatalf("%x, infinite: %t, %t, %t", infinite, holds(x, notFinite), holds(x, isNaN), holds(x, isNaNOrInf))
		}
		nan := rapid.SampledFrom(of.nan).Draw(t, "nan")
		put(at, nan)
		if !holds(x, notFinite) || !holds(x, isNaN) || !holds(x, isNaNOrInf) {
			t.Fatalf("%x, not a number, was not found", nan)
		}
	})
}

// One NaN is found in memory that several goroutines look through.
func TestHoldsInLargeMemory(t *testing.T) {
	values := make([]float32, 5<<20/4+3)
	x, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(values)), tensor.Float32, []int64{int64(len(values))}, nil, tensor.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Release()
	for _, at := range []int{0, 7, len(values) / 2, len(values) - 1} {
		values[at] = float32(math.NaN())
		if !holds(x, isNaN) {
			t.Errorf("not found at %d", at)
		}
		values[at] = 0
	}
	if holds(x, notFinite) {
		t.Error("found something in zeros")
	}
}

func BenchmarkHolds(b *testing.B) {
	for _, elements := range []int{4 << 10, 4 << 20} {
		b.Run(fmt.Sprint(elements), func(b *testing.B) {
			values := make([]float32, elements)
			x, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(values)), tensor.Float32, []int64{1, 1, 1, int64(elements)}, nil, tensor.CPU)
			if err != nil {
				b.Fatal(err)
			}
			defer x.Release()
			b.SetBytes(int64(4 * elements))
			for b.Loop() {
				if holds(x, isNaN) {
					b.Fatal("found")
				}
			}
		})
	}
}
