package merge_test

import (
	"context"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/merge"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

func weights(t rapid.TB, make func(*tile.Runner) core.MergeStrategy, sources int, params core.Params) []float64 {
	t.Helper()
	w, err := make(tile.New(oracle.New())).(core.Weigher).Weights(context.Background(), &core.WeightsRequest{Sources: sources, Params: params})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWeightsByHand(t *testing.T) {
	cases := []struct {
		name    string
		make    func(*tile.Runner) core.MergeStrategy
		params  core.Params
		sources int
		want    []float64
	}{
		{"sma", merge.SMA, nil, 4, []float64{.25, .25, .25, .25}},
		{"wma", merge.WMA, nil, 3, []float64{1. / 6, 2. / 6, 3. / 6}},
		{"ema normalised", merge.EMA, core.Params{"alpha": 0.5}, 3, []float64{1. / 7, 2. / 7, 4. / 7}},
		{"ema seeded", merge.EMA, core.Params{"alpha": 0.5, "variant": "seeded"}, 3, []float64{.25, .25, .5}},
		{"ema of the newest alone", merge.EMA, core.Params{"alpha": 1.0}, 3, []float64{0, 0, 1}},
		{"wsm linear is the mean", merge.WSM, nil, 4, []float64{.25, .25, .25, .25}},
		{"wsm 1-sqrt favours the oldest", merge.WSM, core.Params{"decay": "1-sqrt"}, 4, []float64{.5, math.Sqrt(.5) - .5, math.Sqrt(.75) - math.Sqrt(.5), 1 - math.Sqrt(.75)}},
		{"wsm cosine", merge.WSM, core.Params{"decay": "cosine"}, 2, []float64{.5, .5}},
		{"wsm reversed", merge.WSM, core.Params{"decay": "1-sqrt", "direction": "reversed"}, 4, []float64{1 - math.Sqrt(.75), math.Sqrt(.75) - math.Sqrt(.5), math.Sqrt(.5) - .5, .5}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := weights(t, c.make, c.sources, c.params)
			for i := range c.want {
				if !(math.Abs(got[i]-c.want[i]) <= 1e-15) {
					t.Errorf("weights %v, want %v", got, c.want)
					break
				}
			}
		})
	}
}

func TestWeightsSumToOne(t *testing.T) {
	draw := map[string]func(t *rapid.T) []float64{
		"sma": func(t *rapid.T) []float64 { return weights(t, merge.SMA, sources(t), nil) },
		"wma": func(t *rapid.T) []float64 { return weights(t, merge.WMA, sources(t), nil) },
		"ema": func(t *rapid.T) []float64 { return weights(t, merge.EMA, sources(t), drawEMA(t)) },
		"wsm": func(t *rapid.T) []float64 {
			return weights(t, merge.WSM, sources(t), core.Params{"decay": rapid.SampledFrom([]string{"linear", "cosine", "1-sqrt"}).Draw(t, "decay")})
		},
	}
	for name, weights := range draw {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			sum := 0.0
			for i, w := range weights(t) {
				if w < 0 {
					t.Fatalf("weight %d is %g", i, w)
				}
				sum += w
			}
			if !(math.Abs(sum-1) <= 1e-12) {
				t.Fatalf("weights sum to %g", sum)
			}
		}))
	}
}

func sources(t *rapid.T) int { return rapid.IntRange(1, 40).Draw(t, "sources") }

func drawEMA(t *rapid.T) core.Params {
	return core.Params{"alpha": rapid.Float64Range(0.01, 1).Draw(t, "alpha"), "variant": rapid.SampledFrom([]string{"normalised", "seeded"}).Draw(t, "variant")}
}

func TestSeededEMAIsTheRecursion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		params := drawEMA(t)
		params["variant"] = "seeded"
		alpha, n := params["alpha"].(float64), sources(t)
		numbers := rapid.SliceOfN(rapid.Float64Range(-10, 10), n, n).Draw(t, "numbers")
		average, sum := numbers[0], 0.0
		for _, x := range numbers[1:] {
			average = alpha*x + (1-alpha)*average
		}
		for i, w := range weights(t, merge.EMA, n, params) {
			sum += w * numbers[i]
		}
		if !(math.Abs(average-sum) <= 1e-12*10*float64(n)) {
			t.Fatalf("weighted sum %g, recursion %g", sum, average)
		}
	})
}

func TestLinearWantsWeights(t *testing.T) {
	_, err := merge.Linear(tile.New(oracle.New())).(core.Weigher).Weights(context.Background(), &core.WeightsRequest{Sources: 2})
	if e := core.AsError(err); e == nil || e.Kind != core.ErrInvalidArgument || e.Hint == "" {
		t.Errorf("error %v, want invalid_argument with a hint", err)
	}
}
