package position_test

import (
	"context"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
)

func planOf(t rapid.TB, name string, length int64, params core.Params) *core.PositionPlan {
	t.Helper()
	plan, err := schemes()[name].Plan(context.Background(), &core.PositionRequest{HeadDim: 16, InvFreq: invFreq(16, 1e4), Length: length, TrainLength: 96, Params: params})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Validate(16); err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestEveryPairIsInOneBand(t *testing.T) {
	draw := map[string]func(t *rapid.T) core.Params{
		"rope":   func(*rapid.T) core.Params { return nil },
		"string": drawString,
		"rerope": func(t *rapid.T) core.Params {
			return core.Params{"window": rapid.Int64Range(1, 200).Draw(t, "window"), "leak": rapid.Float64Range(0, 1).Draw(t, "leak")}
		},
		"selfextend": func(t *rapid.T) core.Params {
			return core.Params{"window": rapid.Int64Range(1, 200).Draw(t, "window"), "group": rapid.Int64Range(1, 16).Draw(t, "group")}
		},
		"dca": func(t *rapid.T) core.Params { return core.Params{"chunk": rapid.Int64Range(1, 95).Draw(t, "chunk")} },
	}
	for name, params := range draw {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			plan := planOf(t, name, 256, params(t))
			for m := range int64(256) {
				for n := range int64(256) {
					bands := 0
					for _, b := range plan.Bands {
						if b.Contains(m, n) {
							bands++
						}
					}
					if bands != 1 {
						t.Fatalf("query %d and key %d lie in %d bands", m, n, bands)
					}
				}
			}
		}))
	}
}

func drawString(t *rapid.T) core.Params {
	shift := rapid.Int64Range(1, 200).Draw(t, "shift")
	return core.Params{"shift": shift, "local": rapid.Int64Range(0, shift).Draw(t, "local")}
}

func TestStringDistances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 400).Draw(t, "n")
		params := drawString(t)
		shift, local := params["shift"].(int64), params["local"].(int64)
		plan := planOf(t, "string", n, params)
		farthest := 0.0
		for m := range n {
			for k := range m + 1 {
				want := m - k
				if want >= shift {
					want -= shift - local
				}
				got := plan.Relative(m, k)
				if got != float64(want) {
					t.Fatalf("query %d, key %d: distance %g, want %d", m, k, got, want)
				}
				farthest = max(farthest, got)
			}
		}
		want := n - 1
		if n > shift {
			want = max(shift-1, n-1-shift+local)
		}
		if farthest != float64(want) {
			t.Fatalf("farthest distance %g, want %d", farthest, want)
		}
	})
}

func TestDistancesByHand(t *testing.T) {
	cases := []struct {
		name, scheme string
		params       core.Params
		m, n         int64
		want         float64
	}{
		{"string default S is a third", "string", core.Params{"local": int64(8)}, 40, 8, 8},
		{"string below S", "string", core.Params{"local": int64(8)}, 40, 9, 31},
		{"rerope within", "rerope", nil, 47, 0, 47},
		{"rerope beyond half", "rerope", nil, 90, 0, 48},
		{"rerope leaks", "rerope", core.Params{"leak": 0.5}, 90, 0, 69},
		{"selfextend within", "selfextend", core.Params{"window": int64(16)}, 30, 15, 15},
		{"selfextend beyond", "selfextend", core.Params{"window": int64(16)}, 41, 6, 41/4 + 16 - 4 - 6/4},
		{"dca same chunk", "dca", core.Params{"chunk": int64(32)}, 63, 33, 30},
		{"dca next chunk, near", "dca", core.Params{"chunk": int64(32)}, 64, 63, 1},
		{"dca next chunk, at the limit", "dca", core.Params{"chunk": int64(64)}, 127, 60, 95 - 60},
		{"dca far", "dca", core.Params{"chunk": int64(32)}, 100, 5, 95 - 5},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := planOf(t, c.scheme, 128, c.params).Relative(c.m, c.n); math.Abs(got-c.want) > 1e-12 {
				t.Errorf("distance %g, want %g", got, c.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	cases := []struct {
		name, scheme string
		req          core.PositionRequest
	}{
		{"string without a length", "string", core.PositionRequest{}},
		{"string that grows distances", "string", core.PositionRequest{Params: core.Params{"shift": int64(10), "local": int64(11)}}},
		{"dca chunk too long", "dca", core.PositionRequest{TrainLength: 64, Params: core.Params{"chunk": int64(64)}}},
		{"longrope wrong list", "longrope", core.PositionRequest{TrainLength: 64, Params: core.Params{"short_factor": []float64{1}}}},
		{"ntk limits crossed", "ntk", core.PositionRequest{TrainLength: 64, Params: core.Params{"alpha": 4.0, "beta": 2.0}}},
		{"linear shrinks", "linear", core.PositionRequest{Params: core.Params{"factor": 0.5}}},
		{"unknown parameter", "rope", core.PositionRequest{Params: core.Params{"factor": 2.0}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.req.HeadDim, c.req.InvFreq, c.req.Length = 16, invFreq(16, 1e4), 32
			if _, err := schemes()[c.scheme].Plan(context.Background(), &c.req); err == nil {
				t.Error("no error")
			} else if e := core.AsError(err); e.Kind != core.ErrInvalidArgument {
				t.Errorf("error kind %q, want invalid_argument: %v", e.Kind, err)
			}
		})
	}
}
