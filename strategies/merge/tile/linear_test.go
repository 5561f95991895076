package tile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/operand"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// mean is a linear strategy to run the runner with.
func mean(backend hardware.Backend) core.MergeStrategy {
	return tile.New(backend).Linear(core.Info{Name: "mean"}, func(req *core.WeightsRequest) ([]float64, error) {
		weights := make([]float64, req.Sources)
		for i := range weights {
			weights[i] = 1 / float64(req.Sources)
		}
		return weights, nil
	})
}

func random(seed uint64, n int) []float64 {
	source, values := rand.New(rand.NewPCG(seed, 2)), make([]float64, n)
	for i := range values {
		values[i] = source.NormFloat64()
	}
	return values
}

// mergeTensor has sources of d with random values and outputs of out.
func mergeTensor(t *testing.T, name string, d, out tensor.Dtype, sources, outputs, n int) (core.MergeTensor, [][]float64) {
	t.Helper()
	mt := core.MergeTensor{Name: name, Shape: []int64{int64(n)}}
	values := make([][]float64, sources)
	for s := range values {
		values[s] = operand.Rounded(d, random(uint64(s), n))
		mt.Inputs = append(mt.Inputs, operand.New(t, fmt.Sprintf("source%d", s), d, values[s]))
	}
	for range outputs {
		mt.Outputs = append(mt.Outputs, operand.New(t, "out", out, make([]float64, n)))
	}
	return mt, values
}

func TestCandidatesInOnePass(t *testing.T) {
	weights := [][]float64{{0.25, 0.25, 0.5}, {-1, 0.5, 1.5}, {0, 0, 1}}
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		for _, d := range []tensor.Dtype{tensor.Float32, tensor.BFloat16, tensor.Float16, tensor.Float64} {
			for _, n := range []int{1, 1000, 2<<20 + 3} { // the last is more than a tile
				if n > 1000 && (d != tensor.BFloat16 || backend.Name() == "oracle") {
					continue
				}
				t.Run(fmt.Sprintf("%v %d", d, n), func(t *testing.T) {
					mt, values := mergeTensor(t, "w", d, d, 3, 3, n)
					_, err := mean(backend).Merge(context.Background(), &core.MergeRequest{Sources: 3, Tensors: []core.MergeTensor{mt}, Weights: weights, Float64: true})
					if err != nil {
						t.Fatal(err)
					}
					for c, row := range weights {
						want := make([]float64, n)
						for i := range want {
							for s := range values {
								want[i] += row[s] * values[s][i]
							}
						}
						want = operand.Rounded(d, want)
						for i, got := range operand.Values(t, mt.Outputs[c]) {
							// Sums of float64 products differ in the last bit when they are fused.
							if !(math.Abs(got-want[i]) <= 1e-12+unit(d)*math.Abs(want[i])) {
								t.Fatalf("candidate %d, element %d: %g, want %g", c, i, got, want[i])
							}
						}
					}
				})
			}
		}
	})
}

// unit is the distance of neighbours of d, relative to them: two correct sums
// may be rounded to either side.
func unit(d tensor.Dtype) float64 {
	return map[tensor.Dtype]float64{tensor.Float64: 1e-15, tensor.Float32: 1.2e-7, tensor.Float16: 1e-3, tensor.BFloat16: 8e-3}[d]
}

func TestIntegersComeFromTheNewest(t *testing.T) {
	mt, values := mergeTensor(t, "ids", tensor.Int64, tensor.Int64, 3, 2, 100)
	response, err := mean(backends.Best(t)).Merge(context.Background(), &core.MergeRequest{Sources: 3, Tensors: []core.MergeTensor{mt},
		Weights: [][]float64{{1, 0, 0}, {0, 1, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	if response.Tensors[0].Policy != "copied" {
		t.Errorf("policy %q, want copied", response.Tensors[0].Policy)
	}
	for c := range mt.Outputs {
		for i, got := range operand.Values(t, mt.Outputs[c]) {
			if got != float64(int64(values[2][i])) {
				t.Fatalf("output %d, element %d: %g, want %g", c, i, got, values[2][i])
			}
		}
	}
}

func TestNonFinite(t *testing.T) {
	mt, values := mergeTensor(t, "layers.3.weight", tensor.BFloat16, tensor.BFloat16, 3, 1, 50)
	values[1][7], values[1][9] = math.NaN(), math.Inf(1)
	mt.Inputs[1] = operand.New(t, "spiked", tensor.BFloat16, values[1])
	req := &core.MergeRequest{Sources: 3, Tensors: []core.MergeTensor{mt}}
	_, err := mean(backends.Best(t)).Merge(context.Background(), req)
	if e := core.AsError(err); e == nil || e.Kind != core.ErrCheckpoint {
		t.Fatalf("error %v, want one of kind checkpoint", err)
	}
	for _, part := range []string{"layers.3.weight", "source 1", "spiked", "2 NaN or Inf"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not name %q", err, part)
		}
	}
	req.AllowNonFinite = true
	response, err := mean(backends.Best(t)).Merge(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(response.Tensors[0].NonFinite); got != "[0 2 0]" {
		t.Errorf("non-finite counts %s, want [0 2 0]", got)
	}
}

func TestThreadsGiveTheSameBytes(t *testing.T) {
	var want []byte
	for _, threads := range []int{1, 2, 5} {
		mt, _ := mergeTensor(t, "w", tensor.Float16, tensor.Float16, 2, 1, 3<<20+1)
		if _, err := mean(backends.Best(t)).Merge(context.Background(), &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{mt}, Threads: threads}); err != nil {
			t.Fatal(err)
		}
		got := operand.Bytes(t, mt.Outputs[0])
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d threads give other bytes than one", threads)
		}
	}
}

// Sources cut by columns, each in its own way, over more than a tile and chunks that
// begin inside of a row, give the bytes of those in one piece.
func TestCutSourcesGiveTheSameBytes(t *testing.T) {
	const rows, columns = 1300, 1000
	mt, _ := mergeTensor(t, "w", tensor.BFloat16, tensor.BFloat16, 4, 1, rows*columns)
	mt.Shape = []int64{rows, columns}
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		if backend.Name() == "oracle" {
			return
		}
		merged := func(mt core.MergeTensor) []byte {
			if _, err := mean(backend).Merge(context.Background(), &core.MergeRequest{Sources: 4, Tensors: []core.MergeTensor{mt}}); err != nil {
				t.Fatal(err)
			}
			return bytes.Clone(mapped(t, mt.Outputs[0]))
		}
		want := merged(mt)
		cut := mt
		cut.Inputs = nil
		for i, bounds := range [][]int64{{0, 300, 301, columns}, {0, 500, columns}, {0, columns}, {0, 999, columns}} {
			in := mt.Inputs[i]
			if len(bounds) > 2 {
				in.Extent = byColumns(t, mapped(t, in), rows, columns, bounds)
			}
			cut.Inputs = append(cut.Inputs, in)
		}
		clear(mapped(t, mt.Outputs[0]))
		if !bytes.Equal(merged(cut), want) {
			t.Error("other bytes than those of sources in one piece")
		}
	})
}

func mapped(t *testing.T, o core.MergeOperand) []byte {
	t.Helper()
	m, err := o.Extent.Map(0, o.Extent.Size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.Bytes()
}

// byColumns writes each range of columns to a file, behind three bytes of something else.
func byColumns(t *testing.T, data []byte, rows, columns int64, bounds []int64) tensor.Extent {
	t.Helper()
	c, dir := &tensor.Cut{Item: 2, Shape: []int64{rows, columns}}, t.TempDir()
	for i, end := range bounds[1:] {
		text := []byte("abc")
		for row := range rows {
			text = append(text, data[2*(row*columns+bounds[i]):2*(row*columns+end)]...)
		}
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		c.Parts = append(c.Parts, tensor.Part{File: file, Offset: 3, At: []int64{0, bounds[i]}, Shape: []int64{rows, end - bounds[i]}})
	}
	return tensor.Extent{File: c.Parts[0].File, Size: int64(len(data)), Cut: c}
}

func TestUncachedGivesTheSameBytes(t *testing.T) {
	var want []byte
	for _, uncached := range []bool{false, true} {
		mt, _ := mergeTensor(t, "w", tensor.BFloat16, tensor.BFloat16, 2, 12, 1<<20+77)
		req := &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{mt}, Uncached: uncached}
		for c := range mt.Outputs {
			req.Weights = append(req.Weights, []float64{float64(c) / 12, 1 - float64(c)/12})
		}
		if _, err := mean(backends.Best(t)).Merge(context.Background(), req); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for _, o := range mt.Outputs {
			got = append(got, operand.Bytes(t, o)...)
		}
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatal("other bytes past the page cache than through it")
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	mt, _ := mergeTensor(t, "w", tensor.Float32, tensor.Float32, 2, 1, 10)
	if _, err := mean(backends.Best(t)).Merge(ctx, &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{mt}}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want cancelled", err)
	}
	if got := operand.Values(t, mt.Outputs[0])[0]; got != 0 {
		t.Errorf("a cancelled merge wrote %g", got)
	}
}

func TestRefusals(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(t *testing.T, r *core.MergeRequest)
	}{
		{"a source too few", func(_ *testing.T, r *core.MergeRequest) { r.Tensors[0].Inputs = r.Tensors[0].Inputs[:1] }},
		{"truncated extent", func(_ *testing.T, r *core.MergeRequest) { r.Tensors[0].Inputs[1].Extent.Size -= 4 }},
		{"read-only output", func(_ *testing.T, r *core.MergeRequest) { r.Tensors[0].Outputs[0].Extent.Writable = false }},
		{"weights for another number of outputs", func(_ *testing.T, r *core.MergeRequest) { r.Weights = [][]float64{{1, 0}, {0, 1}} }},
		{"integers among reals", func(t *testing.T, r *core.MergeRequest) {
			r.Tensors[0].Inputs[0] = operand.New(t, "ids", tensor.Int64, make([]float64, 10))
		}},
		{"unknown parameter", func(_ *testing.T, r *core.MergeRequest) { r.Params = core.Params{"alpha": 1.0} }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			mt, _ := mergeTensor(t, "w", tensor.Float32, tensor.Float32, 2, 1, 10)
			req := &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{mt}}
			c.spoil(t, req)
			if _, err := mean(backends.Best(t)).Merge(context.Background(), req); err == nil {
				t.Error("no error")
			}
		})
	}
}

// A file that cannot be mapped is named, and the tensor too.
func TestUnmappedIsNamed(t *testing.T) {
	mt, _ := mergeTensor(t, "layers.0.weight", tensor.Float32, tensor.Float32, 2, 1, 100)
	mt.Inputs[1].Extent.File.Close()
	_, err := mean(backends.Best(t)).Merge(context.Background(), &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{mt}})
	if e := core.AsError(err); e == nil || e.Kind != core.ErrCheckpoint || !strings.Contains(e.Error(), "source1") || !strings.Contains(e.Error(), "layers.0.weight") {
		t.Errorf("error %v: want a checkpoint error that names source1 and layers.0.weight", err)
	}
}
