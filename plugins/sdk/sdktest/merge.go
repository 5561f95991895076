package sdktest

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// merge tries a merge strategy, on float32 tensors in files.
func (s *suite) merge(t *testing.T) {
	t.Run("numbers", s.numbers)
	t.Run("weights", s.mergeWeights)
	t.Run("errors", s.mergeErrors)
	t.Run("leaks", s.mergeLeaks)
	t.Run("crash", s.mergeCrash)
}

func (s *suite) strategy(t *testing.T) core.MergeStrategy {
	t.Helper()
	registry := core.NewRegistry()
	if err := s.host.Register(registry); err != nil {
		t.Fatal(err)
	}
	found, err := registry.Lookup(core.Merge, s.info.Name)
	if err != nil {
		t.Fatal(err)
	}
	return found.(core.MergeStrategy)
}

const mergeSources = 3

// operand is a float32 array in a file of its own, not at its start.
func operand(t *testing.T, name string, writable bool, numbers []float32) core.MergeOperand {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&numbers[0])), 4*len(numbers)), 24); err != nil {
		t.Fatal(err)
	}
	return core.MergeOperand{Dtype: tensor.Float32, Path: f.Name(), Extent: tensor.Extent{File: f, Offset: 24, Size: int64(4 * len(numbers)), Writable: writable}}
}

func result(t *testing.T, o core.MergeOperand) []float32 {
	t.Helper()
	numbers := make([]float32, o.Extent.Size/4)
	if _, err := o.Extent.File.ReadAt(unsafe.Slice((*byte)(unsafe.Pointer(&numbers[0])), o.Extent.Size), o.Extent.Offset); err != nil {
		t.Fatal(err)
	}
	return numbers
}

func (s *suite) mergeRequest(t *testing.T, size int) *core.MergeRequest {
	t.Helper()
	params, err := s.info.Validate(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	tensorOf := core.MergeTensor{Name: "w", Shape: []int64{int64(size)}}
	make32 := func(source int) []float32 {
		numbers := make([]float32, size)
		for i := range numbers {
			numbers[i] = wave(source, i)
		}
		return numbers
	}
	for source := range mergeSources {
		tensorOf.Inputs = append(tensorOf.Inputs, operand(t, "in", false, make32(source)))
	}
	base := operand(t, "base", false, make32(-1))
	tensorOf.Base = &base
	tensorOf.Outputs = []core.MergeOperand{operand(t, "out", true, make([]float32, size))}
	return &core.MergeRequest{Sources: mergeSources, Tensors: []core.MergeTensor{tensorOf}, Params: params, Steps: []float64{100, 200, 300}}
}

func wave(source, i int) float32 { return float32(math.Sin(float64(i*(source+2) + 1))) }

func (s *suite) mergeOnce(t *testing.T, req *core.MergeRequest) (*core.MergeResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return s.strategy(t).Merge(ctx, req)
}

// numbers checks that each output is written in full, with finite numbers, for
// sizes that fit no tile, and the same each time.
func (s *suite) numbers(t *testing.T) {
	for _, size := range []int{1, 5, 1000, 65_537} {
		req := s.mergeRequest(t, size)
		response, err := s.mergeOnce(t, req)
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		if len(response.Tensors) != 1 || response.Tensors[0].Name != "w" {
			t.Errorf("size %d: the report is of %+v: want one of tensor w", size, response.Tensors)
		}
		for i, x := range result(t, req.Tensors[0].Outputs[0]) {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
				t.Fatalf("size %d: output %d is %g", size, i, x)
			}
		}
	}
}

// mergeWeights checks a linear strategy against its own weights.
func (s *suite) mergeWeights(t *testing.T) {
	weigher, ok := s.strategy(t).(core.Weigher)
	if !ok {
		t.Skip("it is not linear")
	}
	req := s.mergeRequest(t, 1000)
	weights, err := weigher.Weights(t.Context(), &core.WeightsRequest{Sources: mergeSources, Steps: req.Steps, Params: req.Params})
	if err != nil || len(weights) != mergeSources {
		t.Fatalf("weights %v, %v: want %d", weights, err, mergeSources)
	}
	if _, err := s.mergeOnce(t, req); err != nil {
		t.Fatal(err)
	}
	for i, got := range result(t, req.Tensors[0].Outputs[0]) {
		want := 0.0
		for source, w := range weights {
			want += w * float64(wave(source, i))
		}
		if math.Abs(float64(got)-want) > 1e-5 {
			t.Fatalf("output %d is %g, and its weights make %g", i, got, want)
		}
	}
}

func (s *suite) mergeErrors(t *testing.T) {
	for name, params := range s.badParameters() {
		_, err := s.info.Validate(params, 0)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	beyond := s.mergeRequest(t, 100)
	beyond.Tensors[0].Outputs[0].Extent.Offset = 1 << 40
	if _, err := s.mergeOnce(t, beyond); err == nil {
		t.Error("an output outside of its file: no error")
	}
}

func (s *suite) mergeLeaks(t *testing.T) {
	req := s.mergeRequest(t, 1000)
	for range 5 {
		if _, err := s.mergeOnce(t, req); err != nil {
			t.Fatal(err)
		}
	}
	descriptors := s.descriptors(t)
	for range 50 {
		if _, err := s.mergeOnce(t, req); err != nil {
			t.Fatal(err)
		}
	}
	s.checkDescriptors(t, descriptors, 50)
}

func (s *suite) mergeCrash(t *testing.T) {
	req := s.mergeRequest(t, 65_537)
	if _, err := s.mergeOnce(t, req); err != nil {
		t.Fatal(err)
	}
	s.killDuring(t, func(ctx context.Context) error {
		for range 100_000 {
			if _, err := s.strategy(t).Merge(ctx, req); err != nil {
				return err
			}
		}
		return errors.New("it was never killed")
	})
	if _, err := s.mergeOnce(t, req); err != nil {
		t.Fatal(err)
	}
}
