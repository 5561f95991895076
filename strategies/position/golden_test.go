package position_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/position"
)

// The golden values are transformers' own functions run in float64; as they are,
// in float32, they differ from these by up to 3e-7 of their value.
const goldenTolerance = 1e-12

func schemes() map[string]core.PositionStrategy {
	byName := map[string]core.PositionStrategy{}
	for _, s := range []core.PositionStrategy{position.RoPE(), position.String(), position.Linear(), position.Dynamic(), position.NTK(),
		position.YaRN(), position.Llama3(), position.LongRoPE(), position.ReRoPE(), position.SelfExtend(), position.DCA()} {
		byName[s.Info().Name] = s
	}
	return byName
}

func invFreq(dim int, theta float64) []float64 {
	f := make([]float64, dim/2)
	for i := range f {
		f[i] = math.Pow(theta, -2*float64(i)/float64(dim))
	}
	return f
}

func TestTransformersParity(t *testing.T) {
	text, err := os.ReadFile("../../tests/golden/position/transformers.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Strategy  string
		HeadDim         int     `json:"head_dim"`
		RopeTheta       float64 `json:"rope_theta"`
		RotaryDim       int     `json:"rotary_dim"`
		TrainLength     int64   `json:"train_length"`
		Length          int64
		Params          core.Params
		InvFreq         []float64 `json:"inv_freq"`
		AttentionFactor float64   `json:"attention_factor"`
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			plan, err := schemes()[c.Strategy].Plan(context.Background(), &core.PositionRequest{HeadDim: c.HeadDim,
				InvFreq: invFreq(c.RotaryDim, c.RopeTheta), Length: c.Length, TrainLength: c.TrainLength, Params: c.Params})
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.InvFreq) != len(c.InvFreq) {
				t.Fatalf("%d frequencies, want %d", len(plan.InvFreq), len(c.InvFreq))
			}
			for i, want := range c.InvFreq {
				if relative := math.Abs(plan.InvFreq[i]-want) / want; !(relative <= goldenTolerance) {
					t.Errorf("frequency %d: %g, want %g: off by %.1e of it", i, plan.InvFreq[i], want, relative)
				}
			}
			if !(math.Abs(plan.AttentionScale-c.AttentionFactor) <= goldenTolerance) {
				t.Errorf("attention factor %g, want %g", plan.AttentionScale, c.AttentionFactor)
			}
		})
	}
}
