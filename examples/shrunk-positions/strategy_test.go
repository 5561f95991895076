package main

import (
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
)

func TestDistances(t *testing.T) {
	req := &core.PositionRequest{
		HeadDim: 4, InvFreq: []float64{1, 0.1}, Length: 8192, TrainLength: 2048, Params: core.Params{"near": int64(512), "factor": nil},
	}
	plan, err := Strategy{}.Plan(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Validate(4); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		distance int64
		want     float64
	}{{0, 0}, {1, 1}, {511, 511}, {512, 512}, {513, 512.2}, {8192, 2048}} {
		if got := plan.Relative(c.distance, 0); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("distance %d became %g: want %g", c.distance, got, c.want)
		}
	}
}

func TestShortPromptsStay(t *testing.T) {
	req := &core.PositionRequest{HeadDim: 4, InvFreq: []float64{1, 0.1}, Length: 2048, TrainLength: 2048, Params: core.Params{"near": int64(512)}}
	plan, err := Strategy{}.Plan(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := plan.Relative(2047, 0); got != 2047 {
		t.Errorf("distance 2047 became %g", got)
	}
}

func TestUnknownLength(t *testing.T) {
	_, err := Strategy{}.Plan(t.Context(), &core.PositionRequest{Length: 10, Params: core.Params{}})
	if e := core.AsError(err); e == nil || e.Kind != core.ErrInvalidArgument || e.Hint == "" {
		t.Errorf("got %v", err)
	}
}
