package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func folder(t *testing.T, seed uint64, config string, specs ...Spec) *Folder {
	t.Helper()
	dir := t.TempDir()
	side := map[string]string{}
	if config != "" {
		side[configName] = config
	}
	write(t, mustSplit(t, specs, 0), Options{Dir: dir}, seed, side)
	return open(t, dir)
}

func TestPair(t *testing.T) {
	a, b := Spec{"a", F32, []int64{2}}, Spec{"b", F32, []int64{2, 3}}
	bHalf, bTall := Spec{"b", BF16, []int64{2, 3}}, Spec{"b", F32, []int64{3, 2}}
	first := folder(t, 1, "", a, b)
	t.Run("equal", func(t *testing.T) {
		other := folder(t, 2, "", b, a)
		p, err := Pair([]*Folder{first, other})
		if err != nil || len(p.Rows) != 2 || len(p.Dtypes) != 0 || len(p.Ties) != 0 {
			t.Fatalf("got %+v, %v: want two rows", p, err)
		}
		for _, row := range p.Rows {
			mine, _ := first.Tensor(row.Name)
			theirs, _ := other.Tensor(row.Name)
			if !slices.Equal(row.Tensors, []*Tensor{mine, theirs}) {
				t.Errorf("row %s holds other tensors", row.Name)
			}
		}
	})
	t.Run("another dtype is listed", func(t *testing.T) {
		p, err := Pair([]*Folder{first, folder(t, 2, "", a, bHalf)})
		if err != nil || len(p.Rows) != 2 || len(p.Dtypes) != 1 || p.Dtypes[0].Name != "b" {
			t.Errorf("got %+v, %v: want both rows, b in Dtypes", p, err)
		}
	})
	for _, c := range []struct {
		name  string
		specs []Spec
		cause error
		parts []string
	}{
		{"missing", []Spec{a}, ErrMissing, []string{`tensor "b"`}},
		{"extra", []Spec{a, b, {"c", F32, []int64{1}}}, ErrExtra, []string{`tensor "c"`, singleName}},
		{"another shape", []Spec{a, bTall}, ErrShape, []string{`tensor "b"`, singleName, "[3 2]", "[2 3]"}},
		{"missing and extra", []Spec{a, {"c", F32, []int64{1}}}, ErrExtra, []string{`tensor "b"`, `tensor "c"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := folder(t, 2, "", c.specs...)
			_, err := Pair([]*Folder{first, folder(t, 3, "", a, b), bad})
			wantError(t, err, c.cause, append(c.parts, bad.Dir)...)
		})
	}
	t.Run("unrelated models give a bounded error", func(t *testing.T) {
		_, err := Pair([]*Folder{folder(t, 1, "", crashModel()...), first})
		if lines := strings.Count(err.Error(), "\n") + 1; lines != maxMismatches+1 || !strings.Contains(err.Error(), "more tensors differ") {
			t.Errorf("%d lines: want %d and a count of the rest", lines, maxMismatches)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		_, err := Pair(nil)
		wantError(t, err, nil, "no checkpoints")
	})
}

func TestTies(t *testing.T) {
	embed, head := Spec{"model.embed_tokens.weight", F32, []int64{4, 2}}, Spec{"lm_head.weight", F32, []int64{4, 2}}
	const yes, no = `{"tie_word_embeddings":true}`, `{"tie_word_embeddings":false}`
	equal := func(f *Folder) *Folder { // makes the head the embedding's bytes
		from, _ := f.Tensor(embed.Name)
		to, _ := f.Tensor(head.Name)
		data := make([]byte, from.Size)
		if err := from.read(data, 0); err != nil {
			t.Fatal(err)
		}
		out, err := os.OpenFile(filepath.Join(f.Dir, singleName), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if _, err := out.WriteAt(data, to.Offset); err != nil {
			t.Fatal(err)
		}
		return f
	}
	stored, without := equal(folder(t, 1, yes, embed, head)), folder(t, 2, yes, embed)
	for name, sources := range map[string][]*Folder{"stored in the first": {stored, without, without}, "stored in the last": {without, without, stored}} {
		t.Run(name, func(t *testing.T) {
			p, err := Pair(sources)
			if err != nil {
				t.Fatal(err)
			}
			at := slices.Index(sources, stored)
			if len(p.Rows) != 1 || len(p.Ties) != 1 || p.Ties[0].Name != head.Name || p.Ties[0].Of != embed.Name || !slices.Equal(p.Ties[0].Stored, []int{at}) {
				t.Errorf("got rows %+v, ties %+v: want the head tied to the embedding, stored in %d", p.Rows, p.Ties, at)
			}
		})
	}
	for name, sources := range map[string][]*Folder{
		"not tied by the config":     {stored, folder(t, 2, no, embed)},
		"the config is silent":       {stored, folder(t, 2, "{}", embed)},
		"there is no config":         {stored, folder(t, 2, "", embed)},
		"the head has its own bytes": {folder(t, 1, yes, embed, head), without},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Pair(sources)
			wantError(t, err, ErrMissing, head.Name)
		})
	}
}

func TestCompareConfigs(t *testing.T) {
	dirs := []string{}
	for _, config := range []string{
		`{"hidden_size":64,"eps":1e-5,"rope_scaling":{"factor":2,"kind":"yarn"},"torch_dtype":"bfloat16","layers":["a","b"],"same":null}`,
		`{"layers":["a","b"],"hidden_size":64,"eps":0.00001,"rope_scaling":{"factor":4,"kind":"yarn"},"torch_dtype":"float32","same":null}`,
		`{"layers":["a","c"],"hidden_size":96,"eps":0.00001,"rope_scaling":{"factor":2,"kind":"yarn"},"torch_dtype":"float32"}`,
	} {
		dir := t.TempDir()
		put(t, dir, map[string]string{configName: config})
		dirs = append(dirs, dir)
	}
	got, err := CompareConfigs(dirs)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, d := range got {
		line := d.Key
		if d.Benign {
			line += " (benign)"
		}
		for _, v := range d.Values {
			line += " " + string(v)
		}
		lines = append(lines, line)
	}
	want := []string{`hidden_size 64 64 96`, `layers ["a","b"] ["a","b"] ["a","c"]`, `rope_scaling.factor 2 4 2`, `same null null `,
		`torch_dtype (benign) "bfloat16" "float32" "float32"`}
	if !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
	if same, err := CompareConfigs([]string{dirs[0], dirs[0]}); err != nil || len(same) != 0 {
		t.Errorf("a config differs from itself in %v, %v", same, err)
	}
	put(t, dirs[1], map[string]string{configName: "[]"})
	_, err = CompareConfigs(dirs)
	wantError(t, err, ErrFormat, filepath.Join(dirs[1], configName))
	_, err = CompareConfigs([]string{t.TempDir()})
	wantError(t, err, os.ErrNotExist, configName)
	if none, err := CompareConfigs(nil); len(none) != 0 || err != nil {
		t.Errorf("no folders differ in %v, %v", none, err)
	}
}

// Every error of Pair must be reachable, not only the first.
func TestPairErrorsAreTyped(t *testing.T) {
	a, b := Spec{"a", F32, []int64{2}}, Spec{"b", F32, []int64{2}}
	_, err := Pair([]*Folder{folder(t, 1, "", a), folder(t, 1, "", b)})
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		var typed *Error
		if !errors.As(e, &typed) || typed.Op != "pair" || typed.File == "" || typed.Tensor == "" {
			t.Errorf("%v does not name file and tensor", e)
		}
	}
}
