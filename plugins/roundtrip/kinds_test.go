package roundtrip

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/host"
)

func TestList(t *testing.T) {
	h, engine := start(t, host.Options{})
	got := engine.List("")
	want := served().Describe()
	for i := range want {
		want[i].Plugin = "tested"
		if got[i].ID() != want[i].ID() || got[i].Plugin != "tested" || got[i].Capabilities.Attends != want[i].Capabilities.Attends {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
	for _, p := range h.Plugins() {
		if p.State != host.StateIdle || p.PID != 0 {
			t.Errorf("%+v: a process was started to list", p)
		}
	}
}

func TestPlan(t *testing.T) {
	h, engine := start(t, host.Options{})
	plan, err := engine.Plan(t.Context(), "shifted", &core.PositionRequest{
		HeadDim: 8, InvFreq: []float64{1, 0.1, 0.01}, Length: 100, Params: core.Params{"offset": 12.5},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := plan.Relative(10, 4); got != 18.5 || !slices.Equal(plan.InvFreq, []float64{1, 0.1, 0.01}) {
		t.Errorf("relative position %g, plan %+v", got, plan)
	}
	if pid(h, core.Attention) != 0 || pid(h, core.Position) == 0 {
		t.Errorf("plugins %+v: want one process, of the kind in use", h.Plugins())
	}
}

// file makes a file of numbers, with something before them.
func file(t *testing.T, name string, before int64, values []float32) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), 4*len(values)), before); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMerge(t *testing.T) {
	h, engine := start(t, host.Options{})
	registry := core.NewRegistry()
	if err := h.Register(registry); err != nil {
		t.Fatal(err)
	}
	s, err := registry.Lookup(core.Merge, "mean")
	if err != nil {
		t.Fatal(err)
	}
	_ = engine
	merge := s.(core.Weigher)
	weights, err := merge.Weights(t.Context(), &core.WeightsRequest{Sources: 4})
	if err != nil || !slices.Equal(weights, []float64{0.25, 0.25, 0.25, 0.25}) {
		t.Errorf("weights %v, %v", weights, err)
	}
	operand := func(f *os.File, offset int64, writable bool) core.MergeOperand {
		return core.MergeOperand{Dtype: tensor.Float32, Extent: tensor.Extent{File: f, Offset: offset, Size: 12, Writable: writable}}
	}
	out := file(t, "out", 0, make([]float32, 100))
	request := func() *core.MergeRequest {
		return &core.MergeRequest{Sources: 2, Tensors: []core.MergeTensor{{
			Name: "w", Shape: []int64{3},
			Inputs: []core.MergeOperand{
				operand(file(t, "a", 40, []float32{1, 2, 3}), 40, false), operand(file(t, "b", 8000, []float32{3, 4, 7}), 8000, false),
			},
			Outputs: []core.MergeOperand{operand(out, 16, true), operand(out, 32, true)},
		}}}
	}
	response, err := merge.Merge(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	if len(response.Tensors) != 1 || response.Tensors[0].Policy != "merged" {
		t.Errorf("response %+v", response)
	}
	for _, offset := range []int64{16, 32} {
		got := make([]float32, 3)
		if _, err := out.ReadAt(unsafe.Slice((*byte)(unsafe.Pointer(&got[0])), 12), offset); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, []float32{2, 3, 5}) {
			t.Errorf("output at %d: %v", offset, got)
		}
	}
	beyond := request()
	beyond.Tensors[0].Outputs[0].Extent.Offset = 1 << 40
	if _, err := merge.Merge(t.Context(), beyond); kindOf(err) != core.ErrCheckpoint {
		t.Errorf("an operand outside of its file: %v", err)
	}
	readOnly := request()
	f, err := os.Open(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	readOnly.Tensors[0].Outputs[0].Extent.File = f
	if _, err := merge.Merge(t.Context(), readOnly); kindOf(err) != core.ErrCheckpoint {
		t.Errorf("an output that is not open for writing: %v", err)
	}
}
