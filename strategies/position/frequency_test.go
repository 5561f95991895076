package position_test

import (
	"context"
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
)

// NTK is not in transformers; its two variants by what their papers say of the
// ends of the spectrum.
func TestNTK(t *testing.T) {
	const factor, length = 4.0, 4096
	applied := invFreq(128, 1e4)
	plan := func(variant string) []float64 {
		p, err := schemes()["ntk"].Plan(context.Background(), &core.PositionRequest{HeadDim: 128, InvFreq: applied, Length: 100, TrainLength: length,
			Params: core.Params{"factor": factor, "variant": variant}})
		if err != nil {
			t.Fatal(err)
		}
		return p.InvFreq
	}
	aware := plan("aware")
	if ratio := aware[0] / applied[0]; ratio != 1 {
		t.Errorf("aware: the fastest frequency is multiplied by %g, want 1", ratio)
	}
	if ratio := aware[63] / applied[63]; math.Abs(ratio-1/factor) > 1e-12 {
		t.Errorf("aware: the slowest frequency is multiplied by %g, want 1/%g", ratio, factor)
	}
	for i, base := range applied {
		// The same as a base of 1e4 * factor^(d/(d-2)).
		if want := math.Pow(1e4*math.Pow(factor, 128.0/126), -2*float64(i)/128); math.Abs(aware[i]-want) > 1e-12*want {
			t.Errorf("aware: frequency %d is %g, want %g", i, aware[i], want)
		}
		turns := length * base / (2 * math.Pi)
		ratio := plan("by_parts")[i] / base
		switch {
		case turns >= 32 && math.Abs(ratio-1) > 1e-12:
			t.Errorf("by parts: frequency %d turns %g times and is multiplied by %g, want 1", i, turns, ratio)
		case turns <= 1 && math.Abs(ratio-1/factor) > 1e-12:
			t.Errorf("by parts: frequency %d turns %g times and is multiplied by %g, want 1/%g", i, turns, ratio, factor)
		case turns > 1 && turns < 32 && math.Abs(ratio-(1/factor+(1-1/factor)*(turns-1)/31)) > 1e-12:
			t.Errorf("by parts: frequency %d turns %g times and is multiplied by %g", i, turns, ratio)
		}
	}
}

// A prompt within S is plain attention: no pair lies in the far band.
func TestStringIsPlainForShortPrompts(t *testing.T) {
	plan := planOf(t, "string", 32, core.Params{"local": int64(8)}) // S is 96/3
	for m := range int64(32) {
		for n := range m + 1 {
			if plan.Relative(m, n) != float64(m-n) {
				t.Fatalf("query %d, key %d: distance %g", m, n, plan.Relative(m, n))
			}
		}
	}
	if plan.AttentionScale != 1 {
		t.Errorf("attention scale %g, want 1", plan.AttentionScale)
	}
}
