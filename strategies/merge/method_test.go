package merge_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/operand"
	"github.com/trivium-ml/trivium/strategies/merge"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// series is a base and checkpoints that went from it in related directions.
type series struct {
	base    []float64
	sources [][]float64
}

func newSeries(seed uint64, sources, n int) series {
	random := rand.New(rand.NewPCG(seed, 5))
	values := func(size float64) []float64 {
		list := make([]float64, n)
		for i := range list {
			list[i] = size * random.NormFloat64()
		}
		return list
	}
	x := series{base: operand.Rounded(tensor.Float32, values(1))}
	common := values(0.1)
	for range sources {
		own := values(0.1)
		for i := range own {
			own[i] += x.base[i] + common[i]
		}
		x.sources = append(x.sources, operand.Rounded(tensor.Float32, own))
	}
	return x
}

func (x series) request(t *testing.T, withBase bool, params core.Params) *core.MergeRequest {
	t.Helper()
	n := int64(len(x.base))
	mt := core.MergeTensor{Name: "layers.0.weight", Shape: []int64{n / 100, 100}}
	for s, values := range x.sources {
		mt.Inputs = append(mt.Inputs, operand.New(t, fmt.Sprintf("source%d", s), tensor.Float32, values))
	}
	if withBase {
		base := operand.New(t, "base", tensor.Float32, x.base)
		mt.Base = &base
	}
	mt.Outputs = []core.MergeOperand{operand.New(t, "out", tensor.Float32, make([]float64, n))}
	return &core.MergeRequest{Sources: len(x.sources), Tensors: []core.MergeTensor{mt}, Params: params}
}

func (x series) delta(s, i int) float64 { return x.sources[s][i] - x.base[i] }

// methods with what they should give, straight from their definitions in
// float64. Sizes: more than one tile.
var methods = []struct {
	name      string
	make      func(*tile.Runner) core.MergeStrategy
	sources   int
	base      bool
	params    core.Params
	reference func(x series) []float64
}{
	{"slerp", merge.SLERP, 2, false, core.Params{"t": 0.3}, func(x series) []float64 { return slerp(x.sources[0], x.sources[1], 0.3) }},
	{"nuslerp", merge.NuSLERP, 2, false, core.Params{"source_weights": []float64{3, 1}}, func(x series) []float64 { return slerp(x.sources[0], x.sources[1], 0.25) }},
	{"nuslerp of differences", merge.NuSLERP, 2, true, nil, func(x series) []float64 {
		a, b := make([]float64, len(x.base)), make([]float64, len(x.base))
		for i := range a {
			a[i], b[i] = x.delta(0, i), x.delta(1, i)
		}
		out := slerp(a, b, 0.5)
		for i := range out {
			out[i] += x.base[i]
		}
		return out
	}},
	{"taskarithmetic", merge.TaskArithmetic, 3, true, core.Params{"source_weights": []float64{1, 0.5, -0.25}, "scale": 0.8}, func(x series) []float64 {
		return x.each(func(i int) float64 { return 0.8 * (x.delta(0, i) + 0.5*x.delta(1, i) - 0.25*x.delta(2, i)) })
	}},
	{"modelstock", merge.ModelStock, 3, true, nil, modelStock},
	{"karcher", merge.Karcher, 3, false, nil, karcher},
	{"ties", merge.TIES, 3, true, core.Params{"density": 0.3, "scale": 0.9}, ties},
	{"breadcrumbs", merge.Breadcrumbs, 3, true, core.Params{"density": 0.5, "gamma": 0.1}, breadcrumbs},
	{"sce", merge.SCE, 3, true, core.Params{"select_topk": 0.4}, sce},
}

const elements = 300_100

func (x series) each(difference func(i int) float64) []float64 {
	out := make([]float64, len(x.base))
	for i := range out {
		out[i] = x.base[i] + difference(i)
	}
	return out
}

func TestMethodsAgainstTheirDefinitions(t *testing.T) {
	for _, c := range methods {
		x := newSeries(1, c.sources, elements)
		want := c.reference(x)
		backends.Each(t, func(t *testing.T, backend hardware.Backend) {
			t.Run(c.name, func(t *testing.T) {
				req := x.request(t, c.base, c.params)
				if _, err := c.make(tile.New(backend)).Merge(context.Background(), req); err != nil {
					t.Fatal(err)
				}
				wrong := 0
				for i, got := range operand.Values(t, req.Tensors[0].Outputs[0]) {
					if !(math.Abs(got-want[i]) <= 2e-6*(1+math.Abs(want[i]))) {
						if wrong++; wrong <= 3 {
							t.Errorf("element %d: %g, want %g", i, got, want[i])
						}
					}
				}
				if wrong > 0 {
					t.Errorf("%d of %d elements are wrong", wrong, len(want))
				}
			})
		})
	}
}

func TestMethodsGiveTheSameBytesOnAnyThreads(t *testing.T) {
	all := append(methods[:len(methods):len(methods)], methods[0])
	all[len(all)-1].name, all[len(all)-1].make, all[len(all)-1].base, all[len(all)-1].params = "della", merge.DELLA, true, nil
	for _, c := range all {
		x := newSeries(2, c.sources, elements)
		var want []byte
		for _, threads := range []int{1, 4} {
			req := x.request(t, c.base, c.params)
			req.Threads = threads
			if _, err := c.make(tile.New(backends.Best(t))).Merge(context.Background(), req); err != nil {
				t.Fatal(err)
			}
			got := operand.Bytes(t, req.Tensors[0].Outputs[0])
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d threads give other bytes than one", c.name, threads)
			}
		}
	}
}

func inner(a, b []float64) float64 {
	sum := 0.0
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

func slerp(a, b []float64, t float64) []float64 {
	angle := math.Acos(inner(a, b) / math.Sqrt(inner(a, a)*inner(b, b)))
	out := make([]float64, len(a))
	for i := range out {
		out[i] = (math.Sin((1-t)*angle)*a[i] + math.Sin(t*angle)*b[i]) / math.Sin(angle)
	}
	return out
}

func modelStock(x series) []float64 {
	n, cosine := len(x.sources), 0.0
	for a := range n {
		for b := range a {
			ab, aa, bb := 0.0, 0.0, 0.0
			for i := range x.base {
				ab, aa, bb = ab+x.delta(a, i)*x.delta(b, i), aa+x.delta(a, i)*x.delta(a, i), bb+x.delta(b, i)*x.delta(b, i)
			}
			cosine += ab / math.Sqrt(aa*bb) / 3
		}
	}
	ratio := float64(n) * cosine / (1 + float64(n-1)*cosine)
	return x.each(func(i int) float64 { return ratio * (x.delta(0, i) + x.delta(1, i) + x.delta(2, i)) / 3 })
}

// karcher walks on the sphere itself.
func karcher(x series) []float64 {
	units, length := make([][]float64, len(x.sources)), 0.0
	mean := make([]float64, len(x.base))
	for s, source := range x.sources {
		norm := math.Sqrt(inner(source, source))
		length += norm / float64(len(x.sources))
		units[s] = make([]float64, len(source))
		for i := range source {
			units[s][i] = source[i] / norm
			mean[i] += units[s][i]
		}
	}
	normalise := func(v []float64) {
		n := math.Sqrt(inner(v, v))
		for i := range v {
			v[i] /= n
		}
	}
	normalise(mean)
	for range 20 {
		tangent := make([]float64, len(mean))
		for _, u := range units {
			cosine := inner(mean, u)
			angle := math.Acos(cosine)
			for i := range tangent {
				tangent[i] += angle / math.Sin(angle) * (u[i] - cosine*mean[i]) / float64(len(units))
			}
		}
		step := math.Sqrt(inner(tangent, tangent))
		if step < 1e-12 {
			break
		}
		for i := range mean {
			mean[i] = math.Cos(step)*mean[i] + math.Sin(step)*tangent[i]/step
		}
		normalise(mean)
	}
	for i := range mean {
		mean[i] *= length
	}
	return mean
}

// ranked lists the elements by falling size.
func ranked(n int, size func(i int) float64) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(size(b), size(a)) })
	return order
}

func ties(x series) []float64 {
	n := len(x.base)
	trimmed := make([][]float64, len(x.sources))
	for s := range trimmed {
		trimmed[s] = make([]float64, n)
		for _, i := range ranked(n, func(i int) float64 { return math.Abs(x.delta(s, i)) })[:int(math.Round(0.3*float64(n)))] {
			trimmed[s][i] = x.delta(s, i)
		}
	}
	return x.each(func(i int) float64 {
		total, sum, count := 0.0, 0.0, 0.0
		for s := range trimmed {
			total += trimmed[s][i]
		}
		for s := range trimmed {
			if trimmed[s][i]*total > 0 {
				sum, count = sum+trimmed[s][i], count+1
			}
		}
		if count == 0 {
			return 0
		}
		return 0.9 * sum / count
	})
}

func breadcrumbs(x series) []float64 {
	n := len(x.base)
	sums := make([]float64, n)
	top, kept := int(math.Round(0.1*float64(n))), int(math.Round(0.5*float64(n)))
	for s := range x.sources {
		for _, i := range ranked(n, func(i int) float64 { return math.Abs(x.delta(s, i)) })[top : top+kept] {
			sums[i] += x.delta(s, i)
		}
	}
	return x.each(func(i int) float64 { return sums[i] })
}

func sce(x series) []float64 {
	n, sources := len(x.base), float64(len(x.sources))
	spread := func(i int) float64 {
		mean, squares := 0.0, 0.0
		for s := range x.sources {
			mean += x.delta(s, i) / sources
		}
		for s := range x.sources {
			squares += (x.delta(s, i) - mean) * (x.delta(s, i) - mean)
		}
		return squares
	}
	selected := make([]bool, n)
	weights, total := make([]float64, len(x.sources)), 0.0
	for _, i := range ranked(n, spread)[:int(math.Round(0.4*float64(n)))] {
		selected[i] = true
		for s := range weights {
			weights[s] += x.delta(s, i) * x.delta(s, i)
			total += x.delta(s, i) * x.delta(s, i)
		}
	}
	return x.each(func(i int) float64 {
		if !selected[i] {
			return 0
		}
		sign, sum, weight := 0.0, 0.0, 0.0
		for s := range weights {
			sign += x.delta(s, i)
		}
		for s := range weights {
			if x.delta(s, i)*sign > 0 {
				sum, weight = sum+weights[s]/total*x.delta(s, i), weight+weights[s]/total
			}
		}
		return sum / weight
	})
}
