package core_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// tuned is averaging under another name, of another version, or with a parameter.
type tuned struct {
	averaging
	name, version string
}

func (s tuned) Info() core.Info {
	info := s.averaging.Info()
	info.Name, info.Version = s.name, s.version
	info.Parameters = []core.Parameter{{Name: "strength", Type: core.Float, Default: 1.0}}
	return info
}

// A killed merge, and one that is done, are only taken up by a merge that would have
// begun them: whatever of a spec or of the sources changes the result is in the recipe.
// A field that neither list names is one that somebody has to think about.
func TestOnlyTheSameMergeGoesOn(t *testing.T) {
	other := func(t *testing.T, s *core.MergeSpec) string { return checkpoints(t, 4, nil)[3] }
	changes := map[string]func(*testing.T, *core.MergeSpec){
		"Method":         func(_ *testing.T, s *core.MergeSpec) { s.Method = "another" },
		"Sources":        func(t *testing.T, s *core.MergeSpec) { s.Sources[0] = other(t, s) },
		"Base":           func(t *testing.T, s *core.MergeSpec) { s.Base = other(t, s) },
		"ModelKey":       func(_ *testing.T, s *core.MergeSpec) { s.ModelKey = "app.model" },
		"ConfigFrom":     func(_ *testing.T, s *core.MergeSpec) { s.ConfigFrom = s.Sources[0] },
		"Weights":        func(_ *testing.T, s *core.MergeSpec) { s.Weights = []float64{.5, .25, .25} },
		"Steps":          func(_ *testing.T, s *core.MergeSpec) { s.Steps = []float64{1, 2, 3} },
		"Params":         func(_ *testing.T, s *core.MergeSpec) { s.Params = core.Params{"strength": .5} },
		"Dtype":          func(_ *testing.T, s *core.MergeSpec) { s.Dtype = tensor.Float32 },
		"Float64":        func(_ *testing.T, s *core.MergeSpec) { s.Float64 = true },
		"AllowNonFinite": func(_ *testing.T, s *core.MergeSpec) { s.AllowNonFinite = true },
		"ShardBytes":     func(_ *testing.T, s *core.MergeSpec) { s.ShardBytes = 1 << 20 },
	}
	files := map[string]func(t *testing.T, sources []string){
		"weights of a source": func(t *testing.T, sources []string) {
			later(t, filepath.Join(sources[0], "model-00001-of-00003.safetensors"))
		},
		"config of a source":    func(t *testing.T, sources []string) { later(t, filepath.Join(sources[0], "config.json")) },
		"config that is copied": func(t *testing.T, sources []string) { later(t, filepath.Join(sources[2], "config.json")) },
		"tokenizer that is new": func(t *testing.T, sources []string) { write(t, filepath.Join(sources[2], "tokenizer.json")) },
		"configuration that went": func(t *testing.T, sources []string) {
			if err := os.Remove(filepath.Join(sources[1], "config.json")); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, change := range files {
		changes[name] = func(t *testing.T, s *core.MergeSpec) { change(t, s.Sources) }
	}
	// Where, whether and how fast, but not what.
	same := map[string]func(*core.MergeSpec){
		"Out": nil, "Overwrite": nil, "Resume": nil, "DryRun": nil,
		"Volatile": func(s *core.MergeSpec) { s.Volatile = true },
		"Threads":  func(s *core.MergeSpec) { s.Threads = 1 },
		"Progress": func(s *core.MergeSpec) { s.Progress = func(int64, int64) {} },
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[core.MergeSpec]()) {
		_, changed := changes[field.Name]
		if _, kept := same[field.Name]; changed == kept {
			t.Errorf("%s: say whether a merge with another one may go on", field.Name)
		}
	}
	e := tunedEngine(t, "1")
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		for state, begin := range states() {
			t.Run(name+", "+state, func(t *testing.T) {
				sources, out := sourcesOf(t)
				spec := core.MergeSpec{Method: "tuned", Sources: slices.Clone(sources), Out: out, Resume: true}
				before := begin(t, spec)
				changes[name](t, &spec)
				_, err := e.Merge(context.Background(), &spec)
				wantCheckpointError(t, err, out)
				if !maps.Equal(before, bytesOf(t, out)) {
					t.Error("a refused merge has changed the folder")
				}
			})
		}
	}
	for name, change := range same {
		if change == nil {
			continue
		}
		for state, begin := range states() {
			t.Run(name+", "+state, func(t *testing.T) {
				sources, out := sourcesOf(t)
				spec := core.MergeSpec{Method: "tuned", Sources: sources, Out: out, Resume: true}
				begin(t, spec)
				change(&spec)
				if _, err := e.Merge(context.Background(), &spec); err != nil {
					t.Errorf("error %v: want that it goes on", err)
				}
			})
		}
	}
	t.Run("another version of the strategy", func(t *testing.T) {
		sources, out := sourcesOf(t)
		spec := core.MergeSpec{Method: "tuned", Sources: sources, Out: out, Resume: true}
		states()["killed"](t, spec)
		_, err := tunedEngine(t, "2").Merge(context.Background(), &spec)
		wantCheckpointError(t, err, out, "another recipe")
	})
}

// states begin a merge and leave it in a state, and give the folder's files.
func states() map[string]func(*testing.T, core.MergeSpec) map[string]string {
	return map[string]func(*testing.T, core.MergeSpec) map[string]string{
		"killed": func(t *testing.T, spec core.MergeSpec) map[string]string {
			failing := averaging{fail: func(name string) error {
				if name == "layers.1.weight" {
					return context.Canceled
				}
				return nil
			}}
			if _, err := mergeEngine(t, tuned{failing, spec.Method, "1"}).Merge(context.Background(), &spec); err == nil {
				t.Fatal("no error")
			}
			return bytesOf(t, spec.Out)
		},
		"done": func(t *testing.T, spec core.MergeSpec) map[string]string {
			if _, err := tunedEngine(t, "1").Merge(context.Background(), &spec); err != nil {
				t.Fatal(err)
			}
			return bytesOf(t, spec.Out)
		},
	}
}

func tunedEngine(t *testing.T, version string) *core.Engine {
	t.Helper()
	registry := core.NewRegistry()
	for _, name := range []string{"tuned", "another"} {
		if err := registry.Register(tuned{name: name, version: version}); err != nil {
			t.Fatal(err)
		}
	}
	return core.NewEngine(registry, nil)
}

// later makes a file as if it had been written again, with the same size.
func later(t *testing.T, path string) {
	t.Helper()
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
}
