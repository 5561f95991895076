package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core/tensor"
)

// testdata/dcp is torch's; dcp.py beside it has written it, and read it with torch's loader.
func TestOpenDistributed(t *testing.T) {
	d, err := Open(filepath.Join("testdata", "dcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	text, err := os.ReadFile(filepath.Join("testdata", "dcp", "read.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]struct {
		Shape  []int64 `json:"shape"`
		SHA256 string  `json:"sha256"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if !d.Distributed || len(d.Tensors) != len(want) || len(d.Ignored) != 2 {
		t.Fatalf("%d tensors, want %d; left out %q", len(d.Tensors), len(want), d.Ignored)
	}
	for name, w := range want {
		tensor, ok := d.Tensor(name)
		if !ok {
			t.Errorf("%s is not there", name)
			continue
		}
		sum, err := tensor.Hash(context.Background())
		if got := fmt.Sprintf("%x", sum); err != nil || got != w.SHA256 || !slices.Equal(tensor.Shape, w.Shape) {
			t.Errorf("%s %v in %d parts: %s, %v; torch reads %v", name, tensor.Shape, tensor.Parts(), got, err, w)
		}
	}
	for name, parts := range map[string]int{"model.rows": 2, "model.columns": 2, "model.one_row": 1, "lm_head": 1} {
		if tensor, ok := d.Tensor(name); ok && tensor.Parts() != parts {
			t.Errorf("%s lies in %d parts, want %d", name, tensor.Parts(), parts)
		}
	}
}

func TestDistributedFileCutShort(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "dcp"))); err != nil {
		t.Fatal(err)
	}
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Truncate(filepath.Join(dir, "__1_0.distcp"), 100); err != nil {
		t.Fatal(err)
	}
	columns, _ := d.Tensor("model.columns")
	if _, err := columns.Hash(context.Background()); !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), "__1_0.distcp") {
		t.Errorf("error %v: want that __1_0.distcp is cut", err)
	}
	var e *Error
	if _, err := Open(dir); !errors.As(err, &e) || !errors.Is(err, ErrTruncated) || e.Tensor == "" || !strings.HasSuffix(e.File, "__1_0.distcp") {
		t.Errorf("error %v: want that a tensor of __1_0.distcp is truncated", err)
	}
}

// Pieces of .metadata as torch pickles it.
func object(class, state string) string {
	module, name, _ := strings.Cut(class, " ")
	return global(module, name) + ")\x81" + state + "b"
}

func torchSize(list ...int64) string {
	return global("torch", "Size") + tupleOf(numbers(list...)) + "R"
}

func listOf(items ...string) string { return "](" + strings.Join(items, "") + "e" }

func savedChunk(at, shape []int64) string {
	return object(dcpModule+"ChunkStorageMetadata", dictOf(text("offsets"), torchSize(at...), text("sizes"), torchSize(shape...)))
}

func savedAs(dtype string, shape []int64, chunks ...string) string {
	properties := object(dcpModule+"TensorProperties", tupleOf(global("torch", dtype), "N", "\x89", "N", "\x89"))
	return object(dcpModule+"TensorStorageMetadata", dictOf(text("properties"), properties, text("size"), torchSize(shape...), text("chunks"), listOf(chunks...)))
}

func indexOf(name string, at ...int64) string {
	return object(dcpModule+"MetadataIndex", dictOf(text("fqn"), text(name), text("offset"), torchSize(at...), text("index"), "N"))
}

func placed(file string, offset, length int64, more ...string) string {
	return object(dcpStorage, dictOf(append([]string{text("relative_path"), text(file), text("offset"), integer(offset), text("length"), integer(length)}, more...)...))
}

func metadataOf(state, storage, planner string) string {
	return pickleOf(object(dcpModule+"Metadata", dictOf(text("state_dict_metadata"), state, text("planner_data"), planner, text("storage_data"), storage)))
}

// chunkFile is an archive of [2, 3] halves, as torch.save writes a tensor.
func chunkFile(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(torchFile(t, map[string]string{
		"data.pkl": pickleOf(rebuilt("HalfStorage", "0", 6, 0, numbers(2, 3), numbers(3, 1))), "data/0": twelve[:12], "byteorder": "little",
	}))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDistributedRefusals(t *testing.T) {
	chunk := chunkFile(t)
	n := int64(len(chunk))
	file := "x" + chunk + chunk // two chunks, at 1 and at n+1
	whole := []int64{4, 3}
	top, low := savedChunk([]int64{0, 0}, []int64{2, 3}), savedChunk([]int64{2, 0}, []int64{2, 3})
	places := func(second string) string {
		return dictOf(indexOf("w", 0, 0), placed("__0_0.distcp", 1, n), indexOf("w", 2, 0), second)
	}
	good := places(placed("__0_0.distcp", n+1, n))
	tensor := func(value string) string { return metadataOf(dictOf(text("w"), value), good, "N") }
	stored := func(storage string) string {
		return metadataOf(dictOf(text("w"), savedAs("float16", whole, top, low)), storage, "N")
	}
	cases := []struct {
		name, metadata string
		cause          error
		tensor, says   string
	}{
		{"", stored(good), nil, "", ""},
		{"a command", pickleOf(global("os", "system") + tupleOf(text("false")) + "R"), ErrFormat, "", "os.system"},
		{"a command by its stack form", pickleOf(text("os") + text("system") + "\x93" + tupleOf(text("false")) + "R"), ErrFormat, "", "os.system"},
		{"a function of torch", pickleOf(global("torch.hub", "load") + ")R"), ErrFormat, "", "torch.hub.load"},
		{"a class of Megatron", pickleOf(global("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata") + ")\x81"), ErrFormat, "", "Megatron-LM"},
		{"a dictionary", pickleOf("}"), ErrFormat, "", "a dictionary"},
		{"no state", pickleOf(global("torch.distributed.checkpoint.metadata", "Metadata") + ")\x81"), ErrFormat, "", "the state None"},
		{"no tensors", metadataOf("}", "}", "N"), ErrMissing, "", "no tensors"},
		{"an end that is missing", "\x80\x02}", ErrFormat, "", "ends before"},
		{"a number for a tensor", tensor(integer(3)), ErrFormat, "w", "int64 3"},
		{"a shape below zero", tensor(savedAs("float16", []int64{-4, 3}, top, low)), ErrFormat, "w", "size"},
		{"a shape that overflows", tensor(savedAs("float16", []int64{1 << 40, 1 << 40}, top, low)), ErrFormat, "w", "size"},
		{"a huge shape", tensor(savedAs("float16", []int64{1 << 50, 3}, top, low)), ErrFormat, "w", "fill"},
		{"a type that is not known", tensor(savedAs("complex64", whole, top, low)), ErrFormat, "w", "complex64"},
		{"another type than in the file", tensor(savedAs("bfloat16", whole, top, low)), ErrFormat, "w", "F16 in the file and [2 3] of BF16"},
		{"another shape than in the file", tensor(savedAs("float16", []int64{4, 2}, savedChunk([]int64{0, 0}, []int64{2, 2}), savedChunk([]int64{2, 0}, []int64{2, 2}))), ErrFormat, "w", "[2 3] of F16 in the file"},
		{"a chunk of other axes", tensor(savedAs("float16", whole, top, savedChunk([]int64{2}, []int64{2}))), ErrFormat, "w", "2 offsets"},
		{"a chunk that is missing", tensor(savedAs("float16", whole, top)), ErrFormat, "w", "does not fill"},
		{"no chunk", tensor(savedAs("float16", whole)), ErrFormat, "w", "no chunk"},
		{"a hole", tensor(savedAs("float16", []int64{5, 3}, top, savedChunk([]int64{3, 0}, []int64{2, 3}))), ErrMissing, "w", "[3 0]"},
		{"chunks that overlap", tensor(savedAs("float16", whole, top, top, low)), ErrFormat, "w", "overlap"},
		{"a chunk outside", tensor(savedAs("float16", []int64{3, 3}, top, low)), ErrFormat, "w", "outside"},
		{"a chunk before the beginning", tensor(savedAs("float16", whole, top, savedChunk([]int64{-2, 0}, []int64{2, 3}))), ErrFormat, "w", "outside"},
		{"a chunk that overflows", tensor(savedAs("float16", whole, top, savedChunk([]int64{2, 0}, []int64{1<<63 - 1, 3}))), ErrFormat, "w", "outside"},
		{"no place", stored(dictOf(indexOf("w", 0, 0), placed("__0_0.distcp", 1, n))), ErrMissing, "w", "does not say where"},
		{"two places", stored(places(placed("__0_0.distcp", n+1, n) + indexOf("w", 2, 0) + placed("__0_0.distcp", 1, n))), ErrFormat, "w", "two places"},
		{"a place above the folder", stored(places(placed("../__0_0.distcp", n+1, n))), ErrFormat, "w", `"../__0_0.distcp"`},
		{"a place elsewhere", stored(places(placed("/etc/passwd", 0, n))), ErrFormat, "w", "/etc/passwd"},
		{"a file that is not there", stored(places(placed("__9_0.distcp", 0, n))), os.ErrNotExist, "w", "__9_0.distcp"},
		{"a place behind the file", stored(places(placed("__0_0.distcp", n+2, n))), ErrTruncated, "w", "truncated"},
		{"a place before the file", stored(places(placed("__0_0.distcp", -1, n))), ErrTruncated, "w", "truncated"},
		{"a place that overflows", stored(places(placed("__0_0.distcp", 1<<62, 1<<62))), ErrTruncated, "w", "truncated"},
		{"a place that is no archive", stored(places(placed("__0_0.distcp", n+2, n-1))), ErrFormat, "w", "zip"},
		{"a chunk that was compressed", stored(places(placed("__0_0.distcp", n+1, n, text("transform_descriptors"), listOf(text("stream.zstd"))))), ErrFormat, "w", "stream.zstd"},
		{"keys that do not make the name", metadataOf(dictOf(text("w"), savedAs("float16", whole, top, low)), good, dictOf(text("w"), tupleOf(text("v")))), ErrFormat, "w", "keys"},
		{"a name twice", metadataOf(dictOf(text("w"), savedAs("float16", whole, top, low), text("w"), savedAs("float16", whole, top, low)), good, "N"), ErrFormat, "", "twice"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, map[string]string{metadataName: c.metadata, "__0_0.distcp": file})
			d, err := Open(dir)
			if c.cause == nil {
				if err != nil {
					t.Fatalf("what the others are made of: %v", err)
				}
				d.Close()
				return
			}
			if err == nil {
				d.Close()
				t.Fatal("accepted")
			}
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, c.cause) || e.Tensor != c.tensor || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(e.File, dir) {
				t.Errorf("error %v: want cause %v, tensor %q, the file, and %q in it", err, c.cause, c.tensor, c.says)
			}
		})
	}
}

func TestWhichTensorsAreTheModels(t *testing.T) {
	item := func(name string, path ...string) dcpItem {
		if path == nil {
			path = []string{name}
		}
		return dcpItem{name: name, path: path}
	}
	plain := []dcpItem{item("model.norm.weight"), item("lm_head.weight"), item("optim.w", "optim", "w")}
	nested := []dcpItem{item("model.model.norm.weight", "model", "model.norm.weight"), item("model.lm_head", "model", "lm_head"), item("ema", "ema")}
	app := []dcpItem{item("app.model.w", "app", "model", "w"), item("app.optim.w", "app", "optim", "w"), item("loader.x", "loader", "x")}
	two := append(slices.Clone(app), item("other.model.w", "other", "model", "w"))
	for _, c := range []struct {
		name  string
		items []dcpItem
		key   string
		want  string // names, or a part of the error
	}{
		{"names with dots at the root", plain, "", "model.norm.weight lm_head.weight"},
		{"a dictionary at the root", nested, "", "model.norm.weight lm_head"},
		{"a dictionary in one at the root", app, "", "w"},
		{"two of those", two, "", "there are: app, loader, other"},
		{"a key", two, "other.model", "w"},
		{"a key that ends with a dot", two, "other.model.", "w"},
		{"a key of nothing", two, "other.modell", "no tensors below other.modell"},
		{"no word on keys", []dcpItem{item("decoder.w"), item("optimizer.state.w"), item("optim.w")}, "", "decoder.w"},
		{"no word on keys, and a key", []dcpItem{item("decoder.w"), item("ema.decoder.w")}, "ema", "decoder.w"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ignored, err := weightsOf(c.items, c.key)
			if err != nil {
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v: want %q in it", err, c.want)
				}
				return
			}
			var names []string
			for _, g := range got {
				names = append(names, g.name)
			}
			if strings.Join(names, " ") != c.want || (len(got) < len(c.items)) != (len(ignored) > 0) {
				t.Errorf("%q, left out %q: want %q", names, ignored, c.want)
			}
		})
	}
}

// Boxes that come of cutting pass; with one gone, twice, grown or moved, none do.
func TestTiling(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 0))
	for range 300 {
		shape := make([]int64, 1+rng.IntN(4))
		for i := range shape {
			shape[i] = 1 + rng.Int64N(9)
		}
		parts := []tensor.Part{{At: make([]int64, len(shape)), Shape: slices.Clone(shape)}}
		for range rng.IntN(12) {
			p, axis := &parts[rng.IntN(len(parts))], rng.IntN(len(shape))
			if p.Shape[axis] < 2 {
				continue
			}
			left := 1 + rng.Int64N(p.Shape[axis]-1)
			other := tensor.Part{At: slices.Clone(p.At), Shape: slices.Clone(p.Shape)}
			other.At[axis], other.Shape[axis] = p.At[axis]+left, p.Shape[axis]-left
			p.Shape[axis] = left
			parts = append(parts, other)
		}
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		if err := checkTiling(shape, parts); err != nil {
			t.Fatalf("shape %v, %v: %v", shape, parts, err)
		}
		at, axis := rng.IntN(len(parts)), rng.IntN(len(shape))
		grown, moved := cloneParts(parts), cloneParts(parts)
		grown[at].Shape[axis]++
		moved[at].At[axis]++
		for what, spoiled := range map[string][]tensor.Part{
			"one gone": slices.Delete(cloneParts(parts), at, at+1), "one twice": append(cloneParts(parts), parts[at]), "one grown": grown, "one moved": moved,
		} {
			if err := checkTiling(shape, spoiled); err == nil {
				t.Fatalf("shape %v, %s of %v passes", shape, what, parts)
			}
		}
	}
	around := []tensor.Part{{At: []int64{0, 0}, Shape: []int64{2, 1}}, {At: []int64{0, 1}, Shape: []int64{1, 2}}, {At: []int64{1, 2}, Shape: []int64{2, 1}},
		{At: []int64{2, 0}, Shape: []int64{1, 2}}, {At: []int64{1, 1}, Shape: []int64{1, 1}}}
	if err := checkTiling([]int64{3, 3}, around); err == nil {
		t.Error("parts that no plane cuts pass")
	}
}

func cloneParts(parts []tensor.Part) []tensor.Part {
	out := slices.Clone(parts)
	for i := range out {
		out[i].At, out[i].Shape = slices.Clone(out[i].At), slices.Clone(out[i].Shape)
	}
	return out
}

func TestForeignCheckpointsSayHowToConvert(t *testing.T) {
	for file, says := range map[string]string{
		"__0_0.distcp": "no .metadata", "__3.metadata": "use_collectives", "mp_rank_00_model_states.pt": "zero_to_fp32", "global_step9/mp_rank_00_model_states.pt": "zero_to_fp32",
		"mp_rank_00/model_optim_rng.pt": "Megatron-LM", "iter_0000009/mp_rank_00/model_optim_rng.pt": "Megatron-LM", "w/.zarray": "Megatron-LM",
		"model.npz": "safetensors.numpy", "tf_model.h5": "from_tf", "flax_model.msgpack": "from_flax",
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, dir, map[string]string{file: ""})
		var e *Error
		if _, err := Open(dir); !errors.As(err, &e) || !strings.Contains(err.Error(), says) || e.File != dir || e.Hint == "" {
			t.Errorf("%s: error %v: want %q in it, the folder and a hint", file, err, says)
		}
	}
}

func FuzzDistributed(f *testing.F) {
	real, err := os.ReadFile(filepath.Join("testdata", "dcp", metadataName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	f.Add([]byte(metadataOf(dictOf(text("w"), savedAs("float16", []int64{2, 3}, savedChunk([]int64{0, 0}, []int64{2, 3}))),
		dictOf(indexOf("w", 0, 0), placed("__0_0.distcp", 1, 99)), dictOf(text("w"), tupleOf(text("w"))))))
	dir := f.TempDir()
	chunk := chunkFile(f)
	if err := os.WriteFile(filepath.Join(dir, "__0_0.distcp"), []byte("x"+chunk), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, metadataName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(dir)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.File == "" {
				t.Fatalf("error %v: want one of this package, with a file", err)
			}
			return
		}
		defer d.Close()
		for _, tensor := range d.Tensors {
			if tensor.Size > 1<<20 {
				t.Fatalf("%s has %d bytes: there are not as many", tensor.Name, tensor.Size)
			}
			if err := tensor.read(make([]byte, tensor.Size), 0); err != nil {
				t.Fatalf("%s was accepted: %v", tensor.Name, err)
			}
		}
	})
}
