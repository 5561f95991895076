package core_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/checkpoint"
)

// A merge in parts, some of them done twice, gives the bytes of a merge in one.
func TestMergeInParts(t *testing.T) {
	sources, out := sourcesOf(t)
	whole := filepath.Join(filepath.Dir(out), "whole")
	ctx, e := context.Background(), mergeEngine(t, averaging{})
	spec := func(dir string) *core.MergeSpec {
		return &core.MergeSpec{Method: "averaging", Sources: sources, Out: dir}
	}
	if _, err := e.Merge(ctx, spec(whole)); err != nil {
		t.Fatal(err)
	}
	begun, err := e.BeginMerge(ctx, spec(out))
	if err != nil || len(begun.Shards) < 2 || begun.Finished {
		t.Fatalf("begun %+v, %v: want several shards", begun, err)
	}
	if _, err := checkpoint.Open(out); err == nil {
		t.Error("something is visible before the end")
	}
	var parts []core.PartReport
	for i, shard := range begun.Shards {
		for range 1 + i%2 {
			part, err := e.MergePart(ctx, spec(out), begun.Recipe, shard.Name)
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				parts = append(parts, *part)
			}
		}
	}
	var typed *core.Error
	if _, err := e.FinishMerge(ctx, spec(out), begun.Recipe, parts); !errors.As(err, &typed) || typed.Kind != core.ErrCheckpoint {
		t.Errorf("error %v for parts that are missing: want a checkpoint error", err)
	}
	// What was recorded is not asked for again, whoever begins.
	resume := spec(out)
	resume.Resume = true
	again, err := e.BeginMerge(ctx, resume)
	if err != nil || len(again.Shards) != len(begun.Shards)-len(parts) {
		t.Fatalf("begun again %+v, %v: want the %d shards that are missing", again, err, len(begun.Shards)-len(parts))
	}
	var rest []core.PartReport
	for _, shard := range again.Shards {
		part, err := e.MergePart(ctx, spec(out), again.Recipe, shard.Name)
		if err != nil {
			t.Fatal(err)
		}
		rest = append(rest, *part)
	}
	if _, err := e.FinishMerge(ctx, spec(out), begun.Recipe, rest); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(bytesOf(t, out), bytesOf(t, whole)) {
		t.Error("the parts give other bytes than the whole")
	}
	if done, err := e.BeginMerge(ctx, resume); err != nil || !done.Finished {
		t.Errorf("begun after the end: %+v, %v: want finished", done, err)
	}
}

func TestPartRefusals(t *testing.T) {
	sources, out := sourcesOf(t)
	ctx, e := context.Background(), mergeEngine(t, averaging{})
	spec := func() *core.MergeSpec { return &core.MergeSpec{Method: "averaging", Sources: sources, Out: out} }
	begun, err := e.BeginMerge(ctx, spec())
	if err != nil {
		t.Fatal(err)
	}
	other := spec()
	other.Sources = sources[1:]
	for name, c := range map[string]struct {
		spec   *core.MergeSpec
		recipe string
		shard  string
	}{
		"another recipe": {spec(), "abc", begun.Shards[0].Name},
		"other sources":  {other, begun.Recipe, begun.Shards[0].Name},
		"another shard":  {spec(), begun.Recipe, "model-00009-of-00009.safetensors"},
	} {
		var typed *core.Error
		if _, err := e.MergePart(ctx, c.spec, c.recipe, c.shard); !errors.As(err, &typed) || typed.Kind != core.ErrCheckpoint {
			t.Errorf("%s: error %v, want a checkpoint error", name, err)
		}
	}
	if _, err := e.BeginMerge(ctx, spec()); err == nil {
		t.Error("begun twice without resume")
	}
}
