package checkpoint

import (
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// smallModel has several dtypes, a scalar, an empty tensor and odd sizes.
var smallModel = []Spec{
	{"model.embed_tokens.weight", BF16, []int64{64, 16}},
	{"model.layers.0.weight", BF16, []int64{16, 16}},
	{"model.layers.0.bias", F32, []int64{17}},
	{"model.layers.1.weight", F16, []int64{16, 3, 5}},
	{"model.layers.1.mask", BOOL, []int64{7}},
	{"model.empty", F32, []int64{0, 4}},
	{"model.step", I64, []int64{}},
	{"model.scale", F8_E4M3, []int64{33}},
	{"lm_head.weight", F64, []int64{5, 5}},
}

// fill writes bytes that depend on the name and the seed only.
func fill(t testing.TB, tensor *Tensor, seed uint64) {
	t.Helper()
	m, err := tensor.Extent(true).Map(0, tensor.Size)
	if err != nil {
		t.Fatal(err)
	}
	copy(m.Bytes(), content(tensor.Name, seed, tensor.Size))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

func content(name string, seed uint64, size int64) []byte {
	h := fnv.New64a()
	h.Write([]byte(name))
	rng := rand.New(rand.NewPCG(seed, h.Sum64()))
	out := make([]byte, size)
	for i := range out {
		out[i] = byte(rng.Uint32())
	}
	return out
}

func mustSplit(t testing.TB, specs []Spec, maxBytes int64) *Plan {
	t.Helper()
	plan, err := Split(specs, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// write makes a whole checkpoint.
func write(t testing.TB, plan *Plan, o Options, seed uint64, side map[string]string) {
	t.Helper()
	w, err := Create(plan, o)
	if err != nil {
		t.Fatal(err)
	}
	finish(t, w, seed, side)
}

func finish(t testing.TB, w *Writer, seed uint64, side map[string]string) {
	t.Helper()
	for _, tensor := range w.Tensors() {
		if w.Completed(tensor.Name) {
			continue
		}
		fill(t, tensor, seed)
		if err := w.Done(tensor); err != nil {
			t.Fatal(err)
		}
	}
	names := make([]string, 0, len(side))
	for name := range side {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := w.WriteFile(name, []byte(side[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *Folder {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// snapshot is every file of dir with its bytes.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	items, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, item := range items {
		data, err := os.ReadFile(filepath.Join(dir, item.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[item.Name()] = string(data)
	}
	return out
}

func put(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// wantError checks the cause and that the message has every part.
func wantError(t testing.TB, err, cause error, parts ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a *checkpoint.Error", err)
	}
	if cause != nil && !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause %q", err, cause)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want it to mention %q", err, part)
		}
	}
}
