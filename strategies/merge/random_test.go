package merge_test

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/operand"
	"github.com/trivium-ml/trivium/strategies/merge"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// ratios merges one source over a base and gives, of each element, how much of
// the difference came through.
func ratios(t *testing.T, make func(*tile.Runner) core.MergeStrategy, params core.Params) (series, []float64) {
	t.Helper()
	x := newSeries(3, 1, elements)
	req := x.request(t, true, params)
	if _, err := make(tile.New(backends.Best(t))).Merge(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	out := operand.Values(t, req.Tensors[0].Outputs[0])
	for i := range out {
		out[i] = (out[i] - x.base[i]) / x.delta(0, i)
	}
	return x, out
}

// within is four standard deviations of a share of n draws.
func within(share float64, n int) float64 { return 4 * math.Sqrt(share*(1-share)/float64(n)) }

func TestDAREKeepsItsDensityAndTheMean(t *testing.T) {
	for _, density := range []float64{0.1, 0.5, 1} {
		_, kept := ratios(t, merge.DARE, core.Params{"density": density})
		count, loud := 0.0, 0
		for _, r := range kept {
			if math.Abs(r) > 0.01 {
				count++
				if math.Abs(r*density-1) > 0.01 {
					loud++ // a difference of little more than the rounding of the base
				}
			}
		}
		if share := count / elements; !(math.Abs(share-density) <= within(density, elements)+1e-3) {
			t.Errorf("density %g: kept %g", density, share)
		}
		if loud > elements/1000 {
			t.Errorf("density %g: %d elements were not scaled by 1/density", density, loud)
		}
	}
}

func TestDARESeeds(t *testing.T) {
	_, a := ratios(t, merge.DARE, core.Params{"seed": int64(1)})
	_, b := ratios(t, merge.DARE, core.Params{"seed": int64(2)})
	same := 0.0
	for i := range a {
		if (math.Abs(a[i]) > 0.5) == (math.Abs(b[i]) > 0.5) {
			same++
		}
	}
	if share := same / elements; !(math.Abs(share-0.5) <= within(0.5, elements)) {
		t.Errorf("two seeds agree on %g of the elements, want half", share)
	}
}

func TestDELLAPrefersTheLarge(t *testing.T) {
	x, kept := ratios(t, merge.DELLA, core.Params{"density": 0.5, "epsilon": 0.3, "normalise": false})
	var large, small, largeKept, smallKept float64
	for i, r := range kept {
		// Of a normal distribution half lies within 0.674 standard deviations.
		if math.Abs(x.delta(0, i)) > 0.674*0.1*math.Sqrt2 {
			large++
			largeKept += bool01(math.Abs(r) > 0.5)
		} else {
			small++
			smallKept += bool01(math.Abs(r) > 0.5)
		}
	}
	if share := largeKept / large; !(math.Abs(share-0.65) <= 0.01) {
		t.Errorf("kept %g of the larger half, want .65", share)
	}
	if share := smallKept / small; !(math.Abs(share-0.35) <= 0.01) {
		t.Errorf("kept %g of the smaller half, want .35", share)
	}
	sum := 0.0
	for i, r := range kept {
		sum += r * math.Abs(x.delta(0, i))
	}
	total := 0.0
	for i := range kept {
		total += math.Abs(x.delta(0, i))
	}
	if !(math.Abs(sum/total-1) <= 0.02) {
		t.Errorf("the mean size became %g of what it was", sum/total)
	}
}

func bool01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func TestMethodRefusals(t *testing.T) {
	cases := []struct {
		name    string
		make    func(*tile.Runner) core.MergeStrategy
		sources int
		base    bool
		params  core.Params
	}{
		{"slerp of three", merge.SLERP, 3, false, nil},
		{"slerp with a base", merge.SLERP, 2, true, nil},
		{"ties without a base", merge.TIES, 2, false, nil},
		{"model stock of one", merge.ModelStock, 1, true, nil},
		{"weights of another number", merge.TaskArithmetic, 2, true, core.Params{"source_weights": []float64{1}}},
		{"weights that cancel", merge.NuSLERP, 2, false, core.Params{"source_weights": []float64{1, -1}}},
		{"della beyond certainty", merge.DELLA, 2, true, core.Params{"density": 0.95}},
		{"density 0", merge.DARE, 2, true, core.Params{"density": 0.0}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.make(tile.New(backends.Best(t))).Merge(context.Background(), newSeries(1, c.sources, 100).request(t, c.base, c.params))
			if e := core.AsError(err); e == nil || e.Kind != core.ErrInvalidArgument {
				t.Errorf("error %v, want invalid_argument", err)
			}
		})
	}
}

func TestNonFiniteBaseIsNamed(t *testing.T) {
	x := newSeries(1, 2, 100)
	req := x.request(t, true, nil)
	x.base[3] = math.NaN()
	base := operand.New(t, "spoiled", tensor.Float32, x.base)
	req.Tensors[0].Base = &base
	for name, make := range map[string]func(*tile.Runner) core.MergeStrategy{"ties": merge.TIES, "dare": merge.DARE, "taskarithmetic": merge.TaskArithmetic} {
		_, err := make(tile.New(backends.Best(t))).Merge(context.Background(), req)
		if err == nil || !strings.Contains(err.Error(), "the base") || !strings.Contains(err.Error(), "spoiled") {
			t.Errorf("%s: error %v does not name the base", name, err)
		}
	}
}

func TestIntegersAreCopiedByMethods(t *testing.T) {
	mt := core.MergeTensor{Name: "ids", Shape: []int64{3}}
	for s := range 2 {
		mt.Inputs = append(mt.Inputs, operand.New(t, "ids", tensor.Int64, []float64{float64(s), 1, 2}))
	}
	mt.Outputs = []core.MergeOperand{operand.New(t, "out", tensor.Int64, make([]float64, 3))}
	response, err := merge.SLERP(tile.New(backends.Best(t))).Merge(context.Background(), &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{mt}})
	if err != nil {
		t.Fatal(err)
	}
	if got := operand.Values(t, mt.Outputs[0]); got[0] != 1 || response.Tensors[0].Policy != "copied" {
		t.Errorf("got %v with policy %q, want the newest's", got, response.Tensors[0].Policy)
	}
}
