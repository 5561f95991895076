package core_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/checkpoint"
	"github.com/trivium-ml/trivium/core/tensor"
)

// averaging is a linear strategy on float32 files, in float64. fail, if not nil,
// is asked before each tensor.
type averaging struct {
	fail func(name string) error
}

func (averaging) Info() core.Info {
	return core.Info{Name: "averaging", Kind: core.Merge, Parameters: []core.Parameter{}, Capabilities: core.Capabilities{Weights: true}}
}

func (averaging) Weights(_ context.Context, req *core.WeightsRequest) ([]float64, error) {
	return slices.Repeat([]float64{1 / float64(req.Sources)}, req.Sources), nil
}

func (a averaging) Merge(ctx context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	response := &core.MergeResponse{Backend: "test"}
	for _, t := range req.Tensors {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if a.fail != nil {
			if err := a.fail(t.Name); err != nil {
				return nil, err
			}
		}
		report := core.TensorReport{Name: t.Name, Policy: "merged", NonFinite: make([]int64, req.Sources)}
		if !t.Inputs[0].Dtype.IsFloat() {
			report.Policy = "copied"
		}
		for k, out := range t.Outputs {
			if err := average(t, out, req.Weights[k], report.NonFinite); err != nil {
				return nil, err
			}
		}
		response.Tensors = append(response.Tensors, report)
	}
	return response, nil
}

func average(t core.MergeTensor, out core.MergeOperand, weights []float64, nonFinite []int64) error {
	result := make([]byte, out.Extent.Size)
	sums := make([]float64, out.Extent.Size/4)
	for s, in := range t.Inputs {
		data := make([]byte, in.Extent.Size)
		if _, err := in.Extent.File.ReadAt(data, in.Extent.Offset); err != nil {
			return err
		}
		copy(result, data) // the newest stays, if it is not overwritten below
		for i := range sums {
			x := float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
			if math.IsNaN(x) || math.IsInf(x, 0) {
				nonFinite[s]++
			}
			sums[i] += weights[s] * x
		}
	}
	for i := range sums {
		if t.Inputs[0].Dtype.IsFloat() {
			binary.LittleEndian.PutUint32(result[4*i:], math.Float32bits(float32(sums[i])))
		}
	}
	_, err := out.Extent.File.WriteAt(result, out.Extent.Offset)
	return err
}

var model = []checkpoint.Spec{
	{Name: "embed.weight", Dtype: checkpoint.F32, Shape: []int64{8, 4}},
	{Name: "layers.0.weight", Dtype: checkpoint.F32, Shape: []int64{4, 4}},
	{Name: "layers.1.weight", Dtype: checkpoint.F32, Shape: []int64{4, 4}},
	{Name: "position_ids", Dtype: checkpoint.I32, Shape: []int64{6}},
}

// value is element i of every real tensor of checkpoint k.
func value(k, i int) float32 { return float32(k) + float32(i)/8 }

// checkpoints writes n sources of the model in three shards; spoil may
// change the bytes of a tensor.
func checkpoints(t *testing.T, n int, spoil func(k int, name string, data []byte)) []string {
	t.Helper()
	root := t.TempDir()
	var dirs []string
	for k := range n {
		dir := filepath.Join(root, fmt.Sprintf("step-%d", 100*(k+1)))
		plan, err := checkpoint.Split(model, 130)
		if err != nil {
			t.Fatal(err)
		}
		w, err := checkpoint.Create(plan, checkpoint.Options{Dir: dir, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, tensor := range w.Tensors() {
			m, err := tensor.Extent(true).Map(0, tensor.Size)
			if err != nil {
				t.Fatal(err)
			}
			for i := range len(m.Bytes()) / 4 {
				bits := math.Float32bits(value(k, i))
				if tensor.Dtype == checkpoint.I32 {
					bits = uint32(1000*k + i)
				}
				binary.LittleEndian.PutUint32(m.Bytes()[4*i:], bits)
			}
			if spoil != nil {
				spoil(k, tensor.Name, m.Bytes())
			}
			m.Close()
			if err := w.Done(tensor); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteFile("config.json", fmt.Appendf(nil, `{"model_type":"test","_name_or_path":"step-%d"}`, k)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

func mergeEngine(t *testing.T, s core.MergeStrategy) *core.Engine {
	t.Helper()
	registry := core.NewRegistry()
	if err := registry.Register(s); err != nil {
		t.Fatal(err)
	}
	return core.NewEngine(registry, nil)
}

// bytesOf reads all files of a folder.
func bytesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	items, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, item := range items {
		data, err := os.ReadFile(filepath.Join(dir, item.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[item.Name()] = string(data)
	}
	return files
}

func sourcesOf(t *testing.T) ([]string, string) {
	dirs := checkpoints(t, 3, nil)
	return dirs, filepath.Join(filepath.Dir(dirs[0]), "merged")
}

func TestMergeWritesTheMean(t *testing.T) {
	sources, out := sourcesOf(t)
	report, err := mergeEngine(t, averaging{}).Merge(context.Background(), &core.MergeSpec{Method: "averaging", Sources: sources, Out: out})
	if err != nil {
		t.Fatal(err)
	}
	if report.Tensors != 3 || !slices.Equal(report.Copied, []string{"position_ids"}) || report.DiskNeed == 0 || report.DiskFree == 0 {
		t.Errorf("report %+v: want 3 merged, position_ids copied, and the disk's figures", report)
	}
	merged, err := checkpoint.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	for _, tensor := range merged.Tensors {
		m, err := tensor.Extent(false).Map(0, tensor.Size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(m.Bytes()) / 4 {
			want := math.Float32bits(value(1, i))
			if tensor.Dtype == checkpoint.I32 {
				want = uint32(2000 + i)
			}
			if got := binary.LittleEndian.Uint32(m.Bytes()[4*i:]); got != want {
				t.Fatalf("%s, element %d: bits %#x, want %#x", tensor.Name, i, got, want)
			}
		}
		m.Close()
	}
	if files := bytesOf(t, out); files["config.json"] != `{"model_type":"test","_name_or_path":"step-2"}` {
		t.Errorf("config.json %q: want the newest source's", files["config.json"])
	}
}

// A merge that fails in the middle goes on where it was when resume is asked
// for, leaves nothing when not, and gives the same bytes either way.
func TestFailedMerges(t *testing.T) {
	failures := map[string]error{
		"cancelled":      context.Canceled,
		"plugin crashed": &core.Error{Kind: core.ErrPluginCrashed, Message: "it died"},
		"disk full":      &checkpoint.Error{Op: "write", File: "f", Reason: "no space", Err: unix.ENOSPC},
		"disk fails":     &checkpoint.Error{Op: "write", File: "f", Reason: "input/output error", Err: unix.EIO},
	}
	for name, failure := range failures {
		for _, resume := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s resume=%t", name, resume), func(t *testing.T) {
				sources, out := sourcesOf(t)
				whole := out + "-whole"
				if _, err := mergeEngine(t, averaging{}).Merge(context.Background(), &core.MergeSpec{Method: "averaging", Sources: sources, Out: whole}); err != nil {
					t.Fatal(err)
				}
				spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out, Resume: resume}
				failing := averaging{fail: func(name string) error {
					if name == "layers.1.weight" {
						return failure
					}
					return nil
				}}
				first := spec
				if _, err := mergeEngine(t, failing).Merge(context.Background(), &first); err == nil {
					t.Fatal("no error")
				}
				if _, err := checkpoint.Open(out); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("opening the output gives %v, want that nothing is visible", err)
				}
				if left := len(bytesOf(t, out)) > 0; left != resume {
					t.Errorf("work left: %t", left)
				}
				if _, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec); err != nil {
					t.Fatal(err)
				}
				if !maps.Equal(bytesOf(t, out), bytesOf(t, whole)) {
					t.Error("other bytes than those of a merge that never failed")
				}
			})
		}
	}
}

// killed leaves what a killed merge leaves.
func killed(t *testing.T, sources []string, out string) {
	t.Helper()
	failing := averaging{fail: func(name string) error {
		if name == "layers.1.weight" {
			return context.Canceled
		}
		return nil
	}}
	spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out, Resume: true}
	if _, err := mergeEngine(t, failing).Merge(context.Background(), &spec); err == nil {
		t.Fatal("no error")
	}
}

func TestUnfinishedWorkIsNamed(t *testing.T) {
	sources, out := sourcesOf(t)
	killed(t, sources, out)
	cases := []struct {
		name string
		edit func(*core.MergeSpec)
		want []string
	}{
		{"again without resume", func(*core.MergeSpec) {}, []string{out, "unfinished", "resume it"}},
		{"dry run", func(s *core.MergeSpec) { s.DryRun = true }, []string{out, "unfinished", "resume it"}},
		{"resume of another recipe", func(s *core.MergeSpec) { s.Resume = true; s.Float64 = true }, []string{out, "another recipe", "overwrite it"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out}
			c.edit(&spec)
			_, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
			wantCheckpointError(t, err, c.want...)
		})
	}
	t.Run("overwrite starts again", func(t *testing.T) {
		spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out, Overwrite: true, Float64: true}
		report, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
		if err != nil || report.Resumed != 0 {
			t.Fatalf("report %+v, error %v: want a merge from the beginning", report, err)
		}
	})
}

func TestResumeOfWhatIsFinished(t *testing.T) {
	sources, out := sourcesOf(t)
	for range 2 {
		spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out, Resume: true}
		if _, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec); err != nil {
			t.Fatal(err)
		}
	}
	spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out}
	_, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
	wantCheckpointError(t, err, out, "already holds")
	spec = core.MergeSpec{Method: "averaging", Sources: sources, Out: out, DryRun: true}
	_, err = mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
	wantCheckpointError(t, err, out, "already holds")
}

func wantCheckpointError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if e := core.AsError(err); e == nil || e.Kind != core.ErrCheckpoint {
		t.Fatalf("error %v, want one of kind checkpoint", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

// Counts of NaN survive a resume, so that the recipe file has the same bytes.
func TestNonFiniteCountsAreResumed(t *testing.T) {
	sources := checkpoints(t, 3, func(k int, name string, data []byte) {
		if k == 1 && name == "embed.weight" {
			binary.LittleEndian.PutUint32(data[8:], math.Float32bits(float32(math.NaN())))
		}
	})
	root := filepath.Dir(sources[0])
	var reports []*core.MergeReport
	for _, stop := range []bool{false, true} {
		out := filepath.Join(root, fmt.Sprintf("merged-%t", stop))
		spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out, AllowNonFinite: true, Resume: true}
		if stop {
			failing := averaging{fail: func(name string) error {
				if name == "layers.1.weight" {
					return context.Canceled
				}
				return nil
			}}
			first := spec
			if _, err := mergeEngine(t, failing).Merge(context.Background(), &first); err == nil {
				t.Fatal("no error")
			}
		}
		report, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
		if err != nil {
			t.Fatal(err)
		}
		reports = append(reports, report)
	}
	for _, r := range reports {
		if len(r.NonFinite) != 1 || r.NonFinite[0].Name != "embed.weight" || !slices.Equal(r.NonFinite[0].NonFinite, []int64{0, 1, 0}) {
			t.Errorf("non-finite %+v, want one in source 1 of embed.weight", r.NonFinite)
		}
	}
	if !maps.Equal(bytesOf(t, reports[0].Out), bytesOf(t, reports[1].Out)) {
		t.Error("the resumed merge has other bytes")
	}
}

func TestDryRun(t *testing.T) {
	sources, out := sourcesOf(t)
	spec := core.MergeSpec{Method: "averaging", Sources: sources, Out: out, DryRun: true, Dtype: tensor.Float64}
	report, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
	if err != nil {
		t.Fatal(err)
	}
	if least := int64(64*8 + 6*4); report.DiskNeed < least || report.DiskFree < report.DiskNeed || report.Bytes != 0 {
		t.Errorf("report %+v: want a need of more than %d bytes, and none written", report, least)
	}
	if len(bytesOf(t, out)) > 0 {
		t.Error("a dry run has written")
	}
}

// The source is a file with a hole of more bytes than any disk has.
func TestDryRunRefusesASmallDisk(t *testing.T) {
	root := t.TempDir()
	source, out := filepath.Join(root, "step-1"), filepath.Join(root, "merged")
	const elements, size = int64(1) << 40, int64(1) << 42
	header := fmt.Sprintf(`{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}`, elements, size)
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	path := filepath.Join(source, "model.safetensors")
	if err := errors.Join(os.Mkdir(source, 0o755), os.WriteFile(path, file, 0o644), os.Truncate(path, int64(len(file))+size)); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		spec := core.MergeSpec{Method: "averaging", Sources: []string{source}, Out: out, DryRun: dry}
		_, err := mergeEngine(t, averaging{}).Merge(context.Background(), &spec)
		wantCheckpointError(t, err, out, "needs 4398046511", "are free", "write elsewhere")
		if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the output folder: %v, want that it was not made", err)
		}
	}
}

// Each mistake in the inputs is an error of its own that names file and tensor.
func TestMergeRefusals(t *testing.T) {
	shard := func(dir string, n int) string {
		return filepath.Join(dir, fmt.Sprintf("model-%05d-of-00003.safetensors", n))
	}
	cases := []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  []string
	}{
		{"truncated", func(t *testing.T, dir string) { truncate(t, shard(dir, 1), -5) }, []string{"step-200/model-00001", "embed.weight", "truncated"}},
		{"overlapping", func(t *testing.T, dir string) { replace(t, shard(dir, 2), "[64,128]", "[63,127]") }, []string{"step-200/model-00002", "layers.", "overlap"}},
		{"a hole", func(t *testing.T, dir string) { replace(t, shard(dir, 2), "[64,128]", "[65,129]") }, []string{"step-200/model-00002", "layers.", "hole"}},
		{"another shape", func(t *testing.T, dir string) { replace(t, shard(dir, 1), "[8,4]", "[4,8]") }, []string{"step-200/model-00001", "embed.weight", "[4 8]", "[8 4]"}},
		{"another dtype", func(t *testing.T, dir string) {
			replace(t, shard(dir, 1), `"F32","shape":[8,4]`, `"I32","shape":[8,4]`)
		}, []string{"step-200/model-00001", "embed.weight", "I32", "F32"}},
		{"another name", func(t *testing.T, dir string) {
			replace(t, shard(dir, 1), "embed.weight", "embed.wheght")
			replace(t, filepath.Join(dir, "model.safetensors.index.json"), "embed.weight", "embed.wheght")
		}, []string{"step-200", "embed.weight", "missing", "embed.wheght"}},
		{"index of another name", func(t *testing.T, dir string) {
			replace(t, filepath.Join(dir, "model.safetensors.index.json"), "embed.weight", "embed.wheght")
		}, []string{"step-200/model-00001", "embed.wheght", "index"}},
		{"no shard", func(t *testing.T, dir string) { os.Remove(shard(dir, 1)) }, []string{"step-200/model-00001", "no such file"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			sources, out := sourcesOf(t)
			c.spoil(t, sources[1])
			_, err := mergeEngine(t, averaging{}).Merge(context.Background(), &core.MergeSpec{Method: "averaging", Sources: sources, Out: out})
			wantCheckpointError(t, err, c.want...)
			if len(bytesOf(t, out)) > 0 {
				t.Error("something was written")
			}
		})
	}
}

func truncate(t *testing.T, path string, by int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()+by)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, old, by string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), old) {
		t.Fatalf("%s does not hold %s: %s", path, old, data[:min(400, len(data))])
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), old, by, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}
