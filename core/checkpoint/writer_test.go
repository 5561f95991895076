package checkpoint

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func TestWriteThenRead(t *testing.T) {
	for name, maxBytes := range map[string]int64{"one file": 0, "shards": 600, "a shard per tensor": 1} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			plan := mustSplit(t, smallModel, maxBytes)
			write(t, plan, Options{Dir: dir}, 1, map[string]string{"config.json": "{}"})
			f := open(t, dir)
			if len(f.Files) != len(plan.Shards) || len(f.Tensors) != len(smallModel) {
				t.Fatalf("%d files with %d tensors, want %d and %d", len(f.Files), len(f.Tensors), len(plan.Shards), len(smallModel))
			}
			for _, spec := range smallModel {
				checkTensor(t, f, spec, 1)
			}
			want := []string{"config.json", plan.entryName()}
			for _, s := range plan.Shards {
				want = append(want, s.Name)
			}
			slices.Sort(want)
			if got := slices.Sorted(maps.Keys(snapshot(t, dir))); !slices.Equal(got, slices.Compact(want)) {
				t.Errorf("the folder holds %v, want %v", got, want)
			}
		})
	}
}

func checkTensor(t *testing.T, f *Folder, spec Spec, seed uint64) {
	t.Helper()
	tensor, ok := f.Tensor(spec.Name)
	if !ok || tensor.Dtype != spec.Dtype || !slices.Equal(tensor.Shape, spec.Shape) {
		t.Fatalf("%s: got %+v, want %+v", spec.Name, tensor, spec)
	}
	m, err := tensor.Extent(false).Map(0, tensor.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if string(m.Bytes()) != string(content(spec.Name, seed, tensor.Size)) {
		t.Errorf("%s has other bytes than were written", spec.Name)
	}
}

func TestResumeKeepsWhatIsDone(t *testing.T) {
	dir, whole := t.TempDir(), t.TempDir()
	plan := mustSplit(t, smallModel, 600)
	write(t, plan, Options{Dir: whole}, 1, nil)

	w, err := Create(plan, Options{Dir: dir, Recipe: "r", SyncBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, tensor := range w.Tensors()[:4] {
		fill(t, tensor, 1)
		if err := w.Done(tensor); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	_, err = Create(plan, Options{Dir: dir, Recipe: "r"})
	wantError(t, err, ErrInProgress, dir, "resume it")
	_, err = Create(plan, Options{Dir: dir, Recipe: "other", Resume: true})
	wantError(t, err, ErrRecipe, dir, "another recipe")
	_, err = Create(mustSplit(t, smallModel, 0), Options{Dir: dir, Recipe: "r", Resume: true})
	wantError(t, err, ErrRecipe, dir, "other tensors or shards")

	w, err = Create(plan, Options{Dir: dir, Recipe: "r", Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, tensor := range w.Tensors() {
		if w.Completed(tensor.Name) != (i < 4) {
			t.Errorf("tensor %d complete: %v", i, w.Completed(tensor.Name))
		}
	}
	_, err = Create(plan, Options{Dir: dir, Recipe: "r", Resume: true})
	wantError(t, err, ErrInProgress, "another process")
	finish(t, w, 1, nil)
	if got, want := snapshot(t, dir), snapshot(t, whole); !maps.Equal(got, want) {
		t.Errorf("resumed %v, whole %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

func TestResumeSurvivesADamagedJournal(t *testing.T) {
	plan := mustSplit(t, smallModel, 600)
	cases := []struct {
		name   string
		damage func(text []byte) []byte
		done   int
	}{
		{"intact", func(b []byte) []byte { return b }, len(smallModel)},
		{"last record torn", func(b []byte) []byte { return b[:len(b)-3] }, len(smallModel) - 1},
		{"garbage after the last record", func(b []byte) []byte { return append(b, "\x00\x00\x00"...) }, len(smallModel)},
		{"a bit flipped in the last record", func(b []byte) []byte { b[len(b)-4] ^= 1; return b }, len(smallModel) - 1},
		{"first record torn", func(b []byte) []byte { return b[:20] }, 0},
		{"empty", func(b []byte) []byte { return nil }, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			w, err := Create(plan, Options{Dir: dir, Recipe: "r", SyncBytes: 1})
			if err != nil {
				t.Fatal(err)
			}
			for _, tensor := range w.Tensors() {
				fill(t, tensor, 1)
				if err := w.Done(tensor); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Sync(); err != nil { // the empty tensor alone does not reach SyncBytes
				t.Fatal(err)
			}
			w.Close()
			path := filepath.Join(dir, journalName)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, map[string]string{journalName: string(c.damage(text))})
			w, err = Create(plan, Options{Dir: dir, Recipe: "r", Resume: true})
			if err != nil {
				t.Fatal(err)
			}
			done := 0
			for _, tensor := range w.Tensors() {
				if w.Completed(tensor.Name) {
					done++
				}
			}
			if done != c.done {
				t.Errorf("%d tensors complete, want %d", done, c.done)
			}
			finish(t, w, 1, nil)
			open(t, dir)
		})
	}
}

func TestResumeRefusesALostShard(t *testing.T) {
	dir := t.TempDir()
	plan := mustSplit(t, smallModel, 600)
	w, err := Create(plan, Options{Dir: dir, SyncBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Done(w.Tensors()[0]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	lost := partial(plan.Shards[0].Name)
	if err := os.Remove(filepath.Join(dir, lost)); err != nil {
		t.Fatal(err)
	}
	_, err = Create(plan, Options{Dir: dir, Resume: true})
	wantError(t, err, ErrMissing, lost, plan.Shards[0].Specs[0].Name, "discard")
	if err := Discard(dir); err != nil {
		t.Fatal(err)
	}
	if left := snapshot(t, dir); len(left) != 0 {
		t.Errorf("discard left %v", slices.Sorted(maps.Keys(left)))
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	w, err := Create(mustSplit(t, smallModel, 600), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteFile("config.json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if exists(dir) {
		t.Error("the folder is still there")
	}
}

func TestAbortComesTooLateForACommit(t *testing.T) {
	dir := t.TempDir()
	plan := mustSplit(t, smallModel, 600)
	w, err := Create(plan, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, tensor := range w.Tensors() {
		fill(t, tensor, 1)
		if err := w.Done(tensor); err != nil {
			t.Fatal(err)
		}
	}
	blocked := filepath.Join(dir, plan.Shards[1].Name, "in the way") // a rename cannot replace a folder
	if err := os.MkdirAll(blocked, 0o755); err != nil {
		t.Fatal(err)
	}
	wantError(t, w.Commit(), nil, plan.Shards[1].Name)
	wantError(t, w.Abort(), ErrInProgress, "commit has begun")
	if err := os.RemoveAll(filepath.Dir(blocked)); err != nil {
		t.Fatal(err)
	}
	w, err = Create(plan, Options{Dir: dir, Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	finish(t, w, 1, nil)
	for _, spec := range smallModel {
		checkTensor(t, open(t, dir), spec, 1)
	}
}

func TestCommitWantsEveryTensor(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(mustSplit(t, smallModel, 0), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, tensor := range w.Tensors()[1:] {
		if err := w.Done(tensor); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, w.Commit(), ErrUnfinished, w.Tensors()[0].Name)
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
}

func TestExistingOutputIsRefused(t *testing.T) {
	plan := mustSplit(t, smallModel, 0)
	for _, name := range []string{"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "README.md", ".hidden"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, map[string]string{name: "old"})
			before := snapshot(t, dir)
			_, err := Create(plan, Options{Dir: dir})
			wantError(t, err, ErrExists, dir, name, "overwriting")
			if !maps.Equal(before, snapshot(t, dir)) {
				t.Error("the folder has changed")
			}
		})
	}
}

func TestSideFileNames(t *testing.T) {
	w, err := Create(mustSplit(t, smallModel, 0), Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, name := range []string{"", "..", "a/b", "../config.json", "model.safetensors", indexName, journalName} {
		wantError(t, w.WriteFile(name, nil), nil, "not the name of a side file")
	}
}

func TestOverwriteRemovesTheOldCheckpoint(t *testing.T) {
	plans := map[string]int64{"one file": 0, "two shards": 2200, "many shards": 1}
	for from, fromBytes := range plans {
		for to, toBytes := range plans {
			t.Run(from+" to "+to, func(t *testing.T) {
				dir, fresh := t.TempDir(), t.TempDir()
				old := map[string]string{"config.json": "old", "chat_template.jinja": "old", "README.md": "old"}
				write(t, mustSplit(t, smallModel, fromBytes), Options{Dir: dir}, 1, old)
				put(t, dir, map[string]string{"notes": "kept", "adapter_model.safetensors": "kept"})
				kept := filepath.Join(dir, "tokenizer") // a folder is nobody's side file
				if err := os.Mkdir(kept, 0o755); err != nil {
					t.Fatal(err)
				}
				side := map[string]string{"config.json": "new"}
				plan := mustSplit(t, smallModel, toBytes)
				write(t, plan, Options{Dir: dir, Overwrite: true}, 2, side)
				write(t, plan, Options{Dir: fresh}, 2, side)
				if err := os.Remove(kept); err != nil {
					t.Error(err)
				}
				want := snapshot(t, fresh)
				want["notes"], want["adapter_model.safetensors"], want["README.md"] = "kept", "kept", "old"
				if got := snapshot(t, dir); !maps.Equal(got, want) {
					t.Errorf("the folder holds %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
				}
			})
		}
	}
}

// A reader that opens while a writer replaces shards of the same names must get one
// checkpoint whole, or an error.
func TestReadersDuringOverwrite(t *testing.T) {
	dir := t.TempDir()
	plan := mustSplit(t, crashModel(), 50_000)
	write(t, plan, Options{Dir: dir}, 0, nil)
	stop, opened := make(chan struct{}), 0
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			f, err := Open(dir)
			if err != nil {
				continue
			}
			opened++
			seeds := map[bool]bool{}
			for _, file := range f.Files {
				tensor := file.Tensors[0]
				got := make([]byte, tensor.Size)
				if err := tensor.read(got, 0); err != nil {
					t.Error(err)
				}
				seeds[string(got) == string(content(tensor.Name, 0, tensor.Size))] = true
			}
			if len(seeds) != 1 {
				t.Error("the opened checkpoint is a mixture of old and new shards")
			}
			f.Close()
		}
	})
	for seed := range 20 {
		write(t, plan, Options{Dir: dir, Overwrite: true}, uint64(seed%2), nil)
	}
	close(stop)
	readers.Wait()
	t.Logf("opened %d times", opened)
	if opened == 0 {
		t.Error("the reader never found a checkpoint")
	}
}

func TestOverwriteFollowsTheOldIndex(t *testing.T) {
	dir := t.TempDir()
	write(t, mustSplit(t, smallModel[:1], 0), Options{Dir: dir}, 1, nil)
	if err := os.Rename(filepath.Join(dir, singleName), filepath.Join(dir, "odd.safetensors")); err != nil {
		t.Fatal(err)
	}
	put(t, dir, map[string]string{indexName: `{"weight_map":{"model.embed_tokens.weight":"odd.safetensors"}}`})
	like, err := Like(smallModel[:1], open(t, dir))
	if err != nil || like.Shards[0].Name != "odd.safetensors" || !like.sharded() {
		t.Fatalf("plan %+v, %v: want the source's one odd shard", like, err)
	}
	write(t, mustSplit(t, smallModel, 0), Options{Dir: dir, Overwrite: true}, 2, nil)
	if got := slices.Sorted(maps.Keys(snapshot(t, dir))); !slices.Equal(got, []string{singleName}) {
		t.Errorf("the folder holds %v, want %s alone", got, singleName)
	}
}

func TestForecast(t *testing.T) {
	dir := t.TempDir()
	huge := mustSplit(t, []Spec{{"w", F32, []int64{1 << 50}}}, 0)
	space, err := Forecast(huge, filepath.Join(dir, "not", "yet"))
	if err != nil || space.Need != huge.Size || space.Free <= 0 {
		t.Errorf("got %+v, %v: want need %d", space, err, huge.Size)
	}
	_, err = Create(huge, Options{Dir: filepath.Join(dir, "not", "yet")})
	wantError(t, err, nil, "needs 4503", "nothing has been written")
	if left := snapshot(t, dir); len(left) != 0 {
		t.Errorf("the refused write left %v", left)
	}
}
