package cpu

import (
	"bytes"
	"context"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

var vectorSizes = map[hardware.VectorDtype]int{
	hardware.VectorFloat32: 4, hardware.VectorBFloat16: 2, hardware.VectorFloat16: 2,
	hardware.VectorFloat64: 8, hardware.VectorFloat8E4M3: 1, hardware.VectorFloat8E5M2: 1,
}

// vector is test memory of n elements, n bytes of poison behind them.
type vector struct {
	hardware.Vector
	raw []byte
}

func newVector(d hardware.VectorDtype, n int) *vector {
	raw := bytes.Repeat([]byte{0xa5}, n*vectorSizes[d]+64)
	return &vector{hardware.Vector{Data: unsafe.Pointer(&raw[0]), Dtype: d, Len: int64(n)}, raw}
}

// fill draws every kind of number: all bit patterns, NaN and infinity included,
// with odds of one in eight, else something of the size of a weight.
func (v *vector) fill(r *rand.Rand) {
	size := vectorSizes[v.Dtype]
	for i := range int(v.Len) {
		at := unsafe.Pointer(&v.raw[i*size])
		x := r.NormFloat64() * 0.05
		any := r.IntN(8) == 0
		switch {
		case any || size == 1:
			for j := range size {
				v.raw[i*size+j] = byte(r.Uint32())
			}
		case v.Dtype == hardware.VectorFloat64:
			*(*float64)(at) = x
		case v.Dtype == hardware.VectorFloat32:
			*(*float32)(at) = float32(x)
		case v.Dtype == hardware.VectorBFloat16:
			*(*uint16)(at) = uint16(math.Float32bits(float32(x)) >> 16)
		default:
			*(*uint16)(at) = halfBits(x)
		}
	}
}

func (b *backend) sum(t *testing.T, out, in []*vector, weights [][]float64, wide bool, threads int) []int64 {
	t.Helper()
	var o, i []hardware.Vector
	for _, v := range out {
		o = append(o, v.Vector)
	}
	for _, v := range in {
		i = append(i, v.Vector)
	}
	counts, err := b.WeightedSum(context.Background(), o, i, weights, wide, threads)
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

// The serial kernel sets the bytes; every other gives the same.
func TestWeightedSumSameBytes(t *testing.T) {
	serial, err := Open("serial")
	if err != nil {
		t.Fatal(err)
	}
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for seed := uint64(1); seed <= 60; seed++ {
			r := rand.New(rand.NewPCG(seed, 3))
			n := pick(r, r.IntN(70), r.IntN(5000), 65536+r.IntN(70000))
			var in, out, want []*vector
			alike, same := seed%3 == 0, hardware.VectorDtype(r.IntN(3)) // one candidate of sources that are alike is summed in place
			for range 1 + r.IntN(20) {
				v := newVector(hardware.VectorDtype(r.IntN(6)), n)
				if alike {
					v = newVector(same, n)
				}
				v.fill(r)
				in = append(in, v)
			}
			var weights [][]float64
			candidates := 1 + r.IntN(5)
			if alike {
				candidates = 1
			}
			for range candidates {
				d := hardware.VectorDtype(r.IntN(6))
				out, want = append(out, newVector(d, n)), append(want, newVector(d, n))
				list := make([]float64, len(in))
				for s := range list {
					list[s] = r.Float64()
				}
				weights = append(weights, list)
			}
			wide := seed%2 == 0
			counts := b.(*backend).sum(t, out, in, weights, wide, 1+int(seed%3))
			expected := serial.(*backend).sum(t, want, in, weights, wide, 1)
			for c := range out {
				if !bytes.Equal(out[c].raw, want[c].raw) {
					t.Fatalf("seed %d: candidate %d of dtype %d differs from serial at byte %d (%d elements, wide %v)",
						seed, c, out[c].Dtype, firstDifference(out[c].raw, want[c].raw), n, wide)
				}
			}
			for s := range counts {
				if counts[s] != expected[s] {
					t.Fatalf("seed %d: source %d has %d non-finite elements, serial counts %d", seed, s, counts[s], expected[s])
				}
			}
		}
	})
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// One rounding: the exact sum, rounded to the nearest number of the dtype,
// ties to even. Float64 sums of few bfloat16 terms with short weights are exact.
func TestWeightedSumRoundsOnce(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		r := rand.New(rand.NewPCG(7, 7))
		const n = 4096
		var in []*vector
		for range 4 {
			v := newVector(hardware.VectorBFloat16, n)
			for i := range n {
				*(*uint16)(unsafe.Pointer(&v.raw[2*i])) = uint16(math.Float32bits(float32(r.NormFloat64())) >> 16)
			}
			in = append(in, v)
		}
		weights := []float64{0.25, 0.5, 0.125, 0.125}
		out := newVector(hardware.VectorBFloat16, n)
		b.(*backend).sum(t, []*vector{out}, in, [][]float64{weights}, true, 2)
		for i := range n {
			exact := new(big.Float).SetPrec(500)
			for s, v := range in {
				x := float64(math.Float32frombits(uint32(*(*uint16)(unsafe.Pointer(&v.raw[2*i]))) << 16))
				exact.Add(exact, new(big.Float).Mul(big.NewFloat(x), big.NewFloat(weights[s])))
			}
			want, _ := new(big.Float).SetPrec(8).SetMode(big.ToNearestEven).Set(exact).Float64()
			got := float64(math.Float32frombits(uint32(*(*uint16)(unsafe.Pointer(&out.raw[2*i]))) << 16))
			if got != want {
				t.Fatalf("element %d: %g, want %g rounded from %s", i, got, want, exact.Text('g', 20))
			}
		}
	})
}

// Values that rounding can get wrong, as PyTorch casts them.
func TestStoreNumbers(t *testing.T) {
	cases := []struct {
		name  string
		dtype hardware.VectorDtype
		in    float64
		want  uint64
	}{
		{"bfloat16 tie to even", hardware.VectorBFloat16, 1 + 0x1p-8, 0x3f80},
		{"bfloat16 above a tie, lost by float32", hardware.VectorBFloat16, 1 + 0x1p-8 + 0x1p-40, 0x3f81},
		{"bfloat16 overflow", hardware.VectorBFloat16, 3.4e38, 0x7f80},
		{"bfloat16 subnormal", hardware.VectorBFloat16, 0x1p-133, 0x0001},
		{"bfloat16 negative zero", hardware.VectorBFloat16, -0x1p-200, 0x8000},
		{"float16 tie to even", hardware.VectorFloat16, 2049, 0x6800},
		{"float16 largest", hardware.VectorFloat16, 65519, 0x7bff},
		{"float16 overflow", hardware.VectorFloat16, 65520, 0x7c00},
		{"float16 subnormal", hardware.VectorFloat16, 0x1p-24, 0x0001},
		{"float16 above a tie, lost by float32", hardware.VectorFloat16, 1 + 0x1p-11 + 0x1p-40, 0x3c01},
		{"e4m3 largest", hardware.VectorFloat8E4M3, 464, 0x7e},
		{"e4m3 overflow is nan", hardware.VectorFloat8E4M3, 465, 0x7f},
		{"e4m3 subnormal", hardware.VectorFloat8E4M3, 0x1p-9, 0x01},
		{"e5m2 largest", hardware.VectorFloat8E5M2, 61439, 0x7b},
		{"e5m2 overflow", hardware.VectorFloat8E5M2, 61440, 0x7c},
		{"float32", hardware.VectorFloat32, 1 + 0x1p-24 + 0x1p-50, 0x3f800001},
	}
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		for _, c := range cases {
			in, out := newVector(hardware.VectorFloat64, 37), newVector(c.dtype, 37)
			for i := range 37 {
				*(*float64)(unsafe.Pointer(&in.raw[8*i])) = c.in
			}
			b.(*backend).sum(t, []*vector{out}, []*vector{in}, [][]float64{{1}}, true, 1)
			for i := range 37 {
				got := uint64(0)
				for j := vectorSizes[c.dtype] - 1; j >= 0; j-- {
					got = got<<8 | uint64(out.raw[i*vectorSizes[c.dtype]+j])
				}
				if got != c.want {
					t.Errorf("%s: element %d is %#x, want %#x", c.name, i, got, c.want)
					break
				}
			}
		}
	})
}
