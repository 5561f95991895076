package merge_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/operand"
	"github.com/trivium-ml/trivium/strategies/merge"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// spread is a request over numbers of all sizes, alike ones, and some that are
// not finite.
func spread(t *testing.T, r *rand.Rand, params core.Params) *core.MergeRequest {
	t.Helper()
	shapes := [][]int64{{}, {1}, {300}, {70_000}, {5000, 1}, {40, 7}, {300, 1280}, {3, 5, 700}, {2, 140_000}}
	dtypes := []tensor.Dtype{tensor.Float32, tensor.BFloat16, tensor.Float16}
	mt := core.MergeTensor{Name: fmt.Sprint("layers.", r.IntN(10)), Shape: shapes[r.IntN(len(shapes))]}
	n := int64(1)
	for _, d := range mt.Shape {
		n *= d
	}
	alike, odd := r.IntN(3) == 0, r.IntN(3) == 0
	draw := func(name string) core.MergeOperand {
		x := make([]float64, n)
		for i := range x {
			x[i] = 0.02 * r.NormFloat64()
			switch {
			case alike:
				x[i] = float64(r.IntN(5)-2) / 8
			case odd && r.IntN(1000) == 0:
				x[i] = []float64{math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), 1e-30, 1e4}[r.IntN(6)]
			}
		}
		return operand.New(t, name, dtypes[r.IntN(3)], x)
	}
	for s := range 1 + r.IntN(6) {
		mt.Inputs = append(mt.Inputs, draw(fmt.Sprint("source", s)))
	}
	base := draw("base")
	mt.Base = &base
	mt.Outputs = []core.MergeOperand{operand.New(t, "out", dtypes[r.IntN(3)], make([]float64, n))}
	return &core.MergeRequest{Sources: len(mt.Inputs), Tensors: []core.MergeTensor{mt}, Params: params, AllowNonFinite: true, Threads: 1 + r.IntN(3)}
}

// DELLA and SCE have their bytes from the definition, on every instruction set and
// any number of threads.
func TestRankedMethodsGiveTheBytesOfTheirDefinition(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(*tile.Runner) core.MergeStrategy
		params func(r *rand.Rand) core.Params
	}{
		{"della", merge.DELLA, func(r *rand.Rand) core.Params {
			return core.Params{"density": 0.2 + 0.6*r.Float64(), "epsilon": 0.2 * r.Float64(), "consensus": r.IntN(2) == 0, "normalise": r.IntN(2) == 0,
				"seed": int64(r.IntN(5)), "scale": []float64{1, 0.7}[r.IntN(2)]}
		}},
		{"sce", merge.SCE, func(r *rand.Rand) core.Params {
			return core.Params{"select_topk": []float64{1, 0.5, 0.01, 1e-9}[r.IntN(4)]}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := map[uint64][]byte{}
			backends.Each(t, func(t *testing.T, backend hardware.Backend) {
				for seed := uint64(1); seed <= 40 && !t.Failed(); seed++ {
					r := rand.New(rand.NewPCG(seed, 31))
					req := spread(t, r, c.params(r))
					if _, err := c.make(tile.New(backend)).Merge(context.Background(), req); err != nil {
						t.Fatal(err)
					}
					got := operand.Bytes(t, req.Tensors[0].Outputs[0])
					if want[seed] == nil { // of the oracle, which comes first
						want[seed] = got
					}
					if !bytes.Equal(got, want[seed]) {
						t.Errorf("seed %d: shape %v, %d sources, %v: other bytes than the definition's", seed, req.Tensors[0].Shape, req.Sources, req.Params)
					}
				}
			})
		})
	}
}
