package checkpoint

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const firstShard, secondShard = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

// twoShards writes a and b to the first shard, c to the second.
func twoShards(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	specs := []Spec{{"a", U8, []int64{4}}, {"b", U8, []int64{4}}, {"c", U8, []int64{4}}}
	write(t, mustSplit(t, specs, 8), Options{Dir: dir}, 1, nil)
	return dir
}

func weightMap(weights string) string { return `{"metadata":{},"weight_map":{` + weights + `}}` }

func TestIndexAndShardsMustAgree(t *testing.T) {
	const a, b, c = `"a":"` + firstShard + `"`, `"b":"` + firstShard + `"`, `"c":"` + secondShard + `"`
	cases := []struct {
		name   string
		index  string
		cause  error
		file   string
		tensor string
	}{
		{"in the index only", weightMap(a + "," + b + "," + c + `,"d":"` + secondShard + `"`), ErrMissing, secondShard, "d"},
		{"in the file only", weightMap(a + "," + c), ErrExtra, firstShard, "b"},
		{"in the other file", weightMap(a + `,"b":"` + secondShard + `",` + c), ErrMissing, secondShard, "b"},
		{"a file that is not there", weightMap(a + "," + b + `,"c":"absent.safetensors"`), os.ErrNotExist, "absent.safetensors", ""},
		{"a file outside the folder", weightMap(a + "," + b + `,"c":"../c.safetensors"`), ErrFormat, indexName, "c"},
		{"a file of another kind", weightMap(a + "," + b + `,"c":"c.bin"`), ErrFormat, indexName, "c"},
		{"a name twice", weightMap(a + "," + a), ErrFormat, indexName, "a"},
		{"no weights", `{"metadata":{}}`, ErrFormat, indexName, ""},
		{"not JSON", `{`, ErrFormat, indexName, ""},
		{"not an object", `[]`, ErrFormat, indexName, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := twoShards(t)
			put(t, dir, map[string]string{indexName: c.index})
			_, err := Open(dir)
			wantError(t, err, c.cause, filepath.Join(dir, c.file), c.tensor)
		})
	}
}

func TestIndexMayHoldMore(t *testing.T) {
	dir := twoShards(t)
	put(t, dir, map[string]string{indexName: `{ "metadata": {"total_size": 12.0, "x": [{"y": null}, "é", -1e5]}, "other": [],
		"weight_map": {"a":"` + firstShard + `","b":"` + firstShard + `","c":"` + secondShard + `"}}`})
	if f := open(t, dir); !f.Sharded || f.Size() != 12 {
		t.Errorf("got sharded %v, %d bytes: want true, 12", f.Sharded, f.Size())
	}
}

func TestFolderRefuses(t *testing.T) {
	duplicate := string(raw(`{"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1))
	cases := []struct {
		name  string
		files map[string]string
		cause error
		parts []string
	}{
		{"a single file beside an index", map[string]string{singleName: "x"}, ErrFormat, []string{"both", "stale"}},
		{"a truncated shard", map[string]string{secondShard: string(raw(`{"c":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 3))}, ErrTruncated, []string{secondShard, `"c"`}},
		{"a name in two shards", map[string]string{"more.safetensors": duplicate, indexName: weightMap(`"a":"` + firstShard + `","b":"` + firstShard + `","c":"` + secondShard + `","d":"more.safetensors"`)},
			ErrFormat, []string{`"c"`, "also in"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := twoShards(t)
			put(t, dir, c.files)
			_, err := Open(dir)
			wantError(t, err, c.cause, append(c.parts, dir)...)
		})
	}
	t.Run("an empty folder", func(t *testing.T) {
		dir := t.TempDir()
		_, err := Open(dir)
		wantError(t, err, os.ErrNotExist, dir, "neither")
	})
	t.Run("no folder", func(t *testing.T) {
		_, err := Open("absent")
		wantError(t, err, os.ErrNotExist, "absent")
	})
	t.Run("a checkpoint of another name", func(t *testing.T) {
		dir := t.TempDir()
		put(t, dir, map[string]string{"step.pt": ""})
		_, err := Open(dir)
		wantError(t, err, os.ErrNotExist, dir, "name the file itself")
	})
}

func TestUnlistedFilesAreSaid(t *testing.T) {
	dir := twoShards(t)
	put(t, dir, map[string]string{"consolidated.safetensors": "", "notes.txt": ""})
	if f := open(t, dir); !slices.Equal(f.Unlisted, []string{"consolidated.safetensors"}) {
		t.Errorf("unlisted %v, want consolidated.safetensors", f.Unlisted)
	}
}

// A refused folder must not keep the descriptors of the shards that were right.
func TestNoDescriptorLeaks(t *testing.T) {
	count := func() int {
		items, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(items)
	}
	dir := twoShards(t)
	before := count()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if open := count() - before; open != 2 {
		t.Errorf("%d descriptors for two shards", open)
	}
	f.Close()
	put(t, dir, map[string]string{secondShard: "short"})
	if _, err := Open(dir); err == nil {
		t.Fatal("a broken shard was accepted")
	}
	if left := count() - before; left != 0 {
		t.Errorf("%d descriptors left", left)
	}
}

func TestDescriptorReachesTheTensor(t *testing.T) {
	f := open(t, twoShards(t))
	tensor, _ := f.Tensor("b")
	got := make([]byte, tensor.Size)
	if _, err := unix.Pread(tensor.File.FD(), got, tensor.Offset); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(content("b", 1, 4)) {
		t.Errorf("read %x through the descriptor, want %x", got, content("b", 1, 4))
	}
}

func TestHash(t *testing.T) {
	dir := t.TempDir()
	specs := []Spec{{"large", U8, []int64{hashChunk*2 + 3}}, {"exact", U8, []int64{hashChunk}}, {"empty", U8, []int64{0}}}
	write(t, mustSplit(t, specs, 0), Options{Dir: dir}, 1, nil)
	f := open(t, dir)
	for _, spec := range specs {
		tensor, _ := f.Tensor(spec.Name)
		got, err := tensor.Hash(context.Background())
		if want := sha256.Sum256(content(spec.Name, 1, tensor.Size)); err != nil || got != want {
			t.Errorf("%s: got %x, %v: want %x", spec.Name, got, err, want)
		}
	}
	large, _ := f.Tensor("large")
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := large.Hash(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if err := os.Truncate(large.File.Path, large.Offset+5); err != nil {
		t.Fatal(err)
	}
	_, err := large.Hash(context.Background())
	wantError(t, err, ErrTruncated, large.File.Path, "large", "ends at byte 5")
}

func TestPlan(t *testing.T) {
	u8 := func(name string, n int64) Spec { return Spec{name, U8, []int64{n}} }
	t.Run("fills shards in order", func(t *testing.T) {
		plan := mustSplit(t, []Spec{u8("a", 6), u8("b", 4), u8("c", 1), u8("d", 99), u8("e", 10), u8("f", 0)}, 10)
		var got []string
		for _, s := range plan.Shards {
			names := s.Name + ":"
			for _, spec := range s.Specs {
				names += " " + spec.Name
			}
			got = append(got, names)
		}
		want := []string{"model-00001-of-00004.safetensors: a b", "model-00002-of-00004.safetensors: c",
			"model-00003-of-00004.safetensors: d", "model-00004-of-00004.safetensors: e f"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("keeps the source's shards", func(t *testing.T) {
		source := open(t, twoShards(t))
		plan, err := Like([]Spec{{"c", F32, []int64{2}}, {"a", BF16, []int64{2}}}, source)
		if err != nil || len(plan.Shards) != 2 || plan.Shards[0].Specs[0].Name != "a" || plan.Shards[1].Name != secondShard {
			t.Errorf("got %+v, %v: want a and c in their files", plan, err)
		}
		_, err = Like([]Spec{u8("z", 1)}, source)
		wantError(t, err, ErrMissing, source.Dir, `"z"`)
	})
	for name, specs := range map[string][]Spec{
		"no tensors": nil, "a name twice": {u8("a", 1), u8("a", 1)}, "an empty name": {u8("", 1)}, "the metadata's name": {u8(metadataKey, 1)},
		"a name not in UTF-8": {u8("\xff", 1)}, "an unknown dtype": {{"a", "F31", nil}}, "a negative axis": {u8("a", -1)},
		"an overflow": {u8("a", 1<<62), u8("b", 1<<62)}, "half a byte": {{"a", F4, []int64{1}}},
	} {
		t.Run("refuses "+name, func(t *testing.T) {
			_, err := Split(specs, 1<<62)
			wantError(t, err, nil, "checkpoint: plan")
		})
	}
}

func TestCopySideFiles(t *testing.T) {
	source, dir := t.TempDir(), t.TempDir()
	copied := map[string]string{"config.json": "{ }\r\n", "generation_config.json": "g", "tokenizer.json": "t", "tokenizer.model": "\x00\xff",
		"tokenizer_config.json": "", "special_tokens_map.json": "s", "chat_template.jinja": "c", "merges.txt": "m", "vocab.json": "v", "modeling_own.py": "p"}
	put(t, source, copied)
	put(t, source, map[string]string{"README.md": "no", "optimizer.pt": "no", "model.safetensors": "no", "train.txt": "no"})
	if err := os.Mkdir(filepath.Join(source, "tokenizer"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(source, "config.json"), filepath.Join(source, "blob")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("blob", filepath.Join(source, "config.json")); err != nil { // as in a hub cache
		t.Fatal(err)
	}
	w, err := Create(mustSplit(t, smallModel, 0), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	names, err := w.CopySideFiles(source)
	if want := slices.Sorted(maps.Keys(copied)); err != nil || !slices.Equal(names, want) {
		t.Fatalf("copied %v, %v: want %v", names, err, want)
	}
	finish(t, w, 1, nil)
	got := snapshot(t, dir)
	delete(got, singleName)
	if !maps.Equal(got, copied) {
		t.Errorf("the folder holds %q, want %q", got, copied)
	}
	_, err = w.CopySideFiles("absent")
	wantError(t, err, os.ErrNotExist, "absent")
}

// Ten thousand tensors must open in time linear in their number.
func BenchmarkOpen(b *testing.B) {
	var specs []Spec
	for i := range 10_000 {
		specs = append(specs, Spec{fmt.Sprintf("model.layers.%d.%s.weight", i, strings.Repeat("x", 20)), BF16, []int64{1, 2}})
	}
	dir := b.TempDir()
	write(b, mustSplit(b, specs, 0), Options{Dir: dir}, 1, nil)
	b.ReportAllocs()
	for b.Loop() {
		f, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
