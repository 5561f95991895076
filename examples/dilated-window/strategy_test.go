package main

import (
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// TestRule checks which tokens the last of 40 queries sees: with equal scores
// each of n keys weighs 1/n, and values are powers of two.
func TestRule(t *testing.T) {
	const length, window, dilation = 40, 3, 4
	tensors := map[string]*tensor.Tensor{}
	for _, name := range []string{"query", "key", "value", "output"} {
		x, err := tensor.Make(tensor.Float32, 1, 1, length, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Release()
		tensors[name] = x
	}
	values, err := tensors["value"].Float32s()
	if err != nil {
		t.Fatal(err)
	}
	want, seen := 0.0, 0.0
	for j := range values {
		values[j] = float32(math.Exp2(float64(j - length)))
		if d := length - 1 - j; d < 3 || d == 4 || d == 8 || d == 12 {
			want, seen = want+float64(values[j]), seen+1
		}
	}
	req := &core.AttentionRequest{
		Query: tensors["query"], Key: tensors["key"], Value: tensors["value"], Output: tensors["output"], Causal: true, Scale: 1,
		Params: core.Params{"window": int64(window), "dilation": int64(dilation)},
	}
	if _, err := (Strategy{}).Attend(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	out, err := tensors["output"].Float32s()
	if err != nil {
		t.Fatal(err)
	}
	if got := float64(out[length-1]); math.Abs(got-want/seen) > 1e-6 {
		t.Errorf("output %g, want %g", got, want/seen)
	}
}
