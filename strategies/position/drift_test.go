package position_test

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// A million tokens on, positions are as exact as at the start: the extra
// rotations are made from float64 angles, so a query at the end of a long cache
// scores within float32 of the definition.
func TestPositionsDoNotDrift(t *testing.T) {
	if testing.Short() {
		t.Skip("a cache of a million keys")
	}
	const n, dim, trained = 1 << 20, 16, 1 << 17
	applied := invFreq(dim, 1e4)
	value := func(i, c int) float64 {
		return math.Sin(float64(i*(c+3))*0.7) + 0.3*math.Cos(float64(i)*1e-4*float64(c))
	}
	row := func(i, seed int) []float64 {
		made := make([]float64, dim)
		for c := range made {
			made[c] = 3 * value(i+seed, c)
		}
		return made
	}
	r := &core.AttentionRequest{Causal: true, Layer: -1, QueryOffset: []int64{n - 1}}
	r.Query, r.Key, r.Value = request.Make(tensor.Float32, 1, 1, 1, dim), request.Make(tensor.Float32, 1, 1, n, dim), request.Make(tensor.Float32, 1, 1, n, dim)
	fillRows(r.Query, func(int) []float64 { return rotated(row(n-1, 5), applied, n-1, false) })
	fillRows(r.Key, func(i int) []float64 { return rotated(row(i, 9), applied, float64(i), false) })
	fillRows(r.Value, func(i int) []float64 { return row(i, 2) })
	for name, params := range map[string]core.Params{
		"string": nil, "selfextend": {"group": int64(8)}, "dca": nil, "yarn": {"factor": 8.0},
	} {
		plan, err := schemes()[name].Plan(context.Background(), &core.PositionRequest{HeadDim: dim, InvFreq: applied, Length: n, TrainLength: trained, Params: params})
		if err != nil {
			t.Fatal(err)
		}
		exact := func(angle float64) float64 { return angle }
		want := lastRow(plan, n, row, exact)
		drifted := lastRow(plan, n, row, func(angle float64) float64 { return float64(float32(angle)) })
		if d := difference(want, drifted); d < 20*tolerance {
			t.Fatalf("%s: angles in float32 change the result by %g only: the case shows nothing", name, d)
		}
		for _, backend := range kernels(t) {
			t.Run(fmt.Sprint(name, " ", backend.Name()), func(t *testing.T) {
				call := *r
				call.Position = plan
				request.Outputs(&call)
				if _, err := kernel.New(backend).Attend(context.Background(), &call, &core.Selection{}); err != nil {
					t.Fatal(err)
				}
				for c, got := range request.Row(call.Output, 0, 0, 0) {
					if !(math.Abs(got-want[c]) <= tolerance) {
						t.Errorf("column %d: %g, want %g", c, got, want[c])
					}
				}
			})
		}
	}
}

func fillRows(to *tensor.Tensor, row func(i int) []float64) {
	var made []float64
	request.Fill(to, func(at [4]int) float64 {
		if at[3] == 0 {
			made = row(at[2])
		}
		return made[at[3]]
	})
}

// lastRow is the definition for the query at position n-1, each side rotated to
// its own position by angles that round may spoil.
func lastRow(plan *core.PositionPlan, n int, row func(i, seed int) []float64, round func(angle float64) float64) []float64 {
	half := len(plan.InvFreq)
	turn := func(x []float64, p float64) []float64 {
		out := make([]float64, len(x))
		for f, frequency := range plan.InvFreq {
			sin, cos := math.Sincos(round(frequency * p))
			out[f], out[half+f] = x[f]*cos-x[half+f]*sin, x[half+f]*cos+x[f]*sin
		}
		return out
	}
	queries := make([][]float64, len(plan.Bands))
	for b, band := range plan.Bands {
		queries[b] = turn(row(n-1, 5), band.Query.Position(int64(n-1)))
	}
	scores, top := make([]float64, n), math.Inf(-1)
	for j := range scores {
		band := plan.Band(int64(n-1), int64(j))
		for c, k := range turn(row(j, 9), plan.Bands[band].Key.Position(int64(j))) {
			scores[j] += queries[band][c] * k
		}
		scores[j] *= plan.AttentionScale * plan.AttentionScale / math.Sqrt(float64(2*half))
		top = max(top, scores[j])
	}
	out, sum := make([]float64, 2*half), 0.0
	for j, score := range scores {
		w := math.Exp(score - top)
		sum += w
		for c, v := range row(j, 2) {
			out[c] += w * v
		}
	}
	for c := range out {
		out[c] /= sum
	}
	return out
}

func difference(a, b []float64) float64 {
	worst := 0.0
	for i := range a {
		worst = max(worst, math.Abs(a[i]-b[i]))
	}
	return worst
}

// kernels are the backends but the oracle, which would take minutes.
func kernels(t *testing.T) []hardware.Backend {
	t.Helper()
	var found []hardware.Backend
	backends.Each(t, func(_ *testing.T, backend hardware.Backend) {
		if backend.Name() != "oracle" {
			found = append(found, backend)
		}
	})
	return found
}
