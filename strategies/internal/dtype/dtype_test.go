package dtype

import (
	"math"
	"testing"
)

func TestHalfRoundTrip(t *testing.T) {
	for bits := range 1 << 16 {
		x := FromFloat16(uint16(bits))
		if x != x {
			continue
		}
		if got := ToFloat16(x); got != uint16(bits) {
			t.Fatalf("half %#04x is %g and comes back as %#04x", bits, x, got)
		}
	}
}

func TestBFloat16RoundTrip(t *testing.T) {
	for bits := range 1 << 16 {
		x := FromBFloat16(uint16(bits))
		if x != x {
			continue
		}
		if got := ToBFloat16(x); got != uint16(bits) {
			t.Fatalf("bfloat16 %#04x is %g and comes back as %#04x", bits, x, got)
		}
	}
}

func TestRounding(t *testing.T) {
	cases := []struct {
		name     string
		x        float32
		half, bf uint16
	}{
		{"one", 1, 0x3c00, 0x3f80},
		{"half tie to even", 1 + 1.0/2048, 0x3c00, 0x3f80},
		{"half tie up", 1 + 3.0/2048, 0x3c02, 0x3f80},
		{"bfloat16 tie to even", 1 + 1.0/256, 0x3c04, 0x3f80},
		{"bfloat16 tie up", 1 + 3.0/256, 0x3c0c, 0x3f82},
		{"half overflow", 65520, 0x7c00, 0x4780},
		{"largest half", 65504, 0x7bff, 0x4780},
		{"smallest subnormal half", 1.0 / (1 << 24), 1, 0x3380},
		{"negative", -2, 0xc000, 0xc000},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := ToFloat16(c.x); got != c.half {
				t.Errorf("half of %g: %#04x, want %#04x", c.x, got, c.half)
			}
			if got := ToBFloat16(c.x); got != c.bf {
				t.Errorf("bfloat16 of %g: %#04x, want %#04x", c.x, got, c.bf)
			}
		})
	}
	nan := float32(math.NaN())
	if x := FromFloat16(ToFloat16(nan)); x == x {
		t.Error("NaN became a number as half")
	}
	if x := FromBFloat16(ToBFloat16(nan)); x == x {
		t.Error("NaN became a number as bfloat16")
	}
}
