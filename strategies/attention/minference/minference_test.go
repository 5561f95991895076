package minference_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/minference"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

func newRequest(patterns string, layer int) *core.AttentionRequest {
	req := request.Random(2, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 600, Keys: 600, Dim: 16})
	req.Layer, req.Params = layer, core.Params{"patterns": patterns, "block_size": int64(32)}
	return req
}

func TestEachHeadHasItsPattern(t *testing.T) {
	selection, err := minference.New(kernel.New(oracle.New())).Select(context.Background(), newRequest("testdata/patterns.json", 0))
	if err != nil {
		t.Fatal(err)
	}
	for h, want := range []string{"vertical_and_slash", "stream_llm", "block_sparse", "vertical_and_slash"} {
		if got := selection.Heads[h].Pattern; got != want {
			t.Errorf("head %d: pattern %q, want %q", h, got, want)
		}
	}
	for i := range selection.Mask.Sequences[0].QueryBlocks {
		// stream_llm 32, 128: the first block and those that 128 tokens reach.
		if got, want := len(selection.Mask.Row(0, 1, i)), min(i+1, 6); got != want {
			t.Errorf("streaming, query block %d: %d blocks, want %d", i, got, want)
		}
		// block_sparse 4: the best four, column 0 and the diagonal.
		if got := len(selection.Mask.Row(0, 2, i)); got < min(i+1, 4) || got > 6 {
			t.Errorf("block sparse, query block %d: %d blocks", i, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"0": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, patterns string
		layer          int
	}{
		{"missing file", "testdata/none.json", 0},
		{"not a list", broken, 0},
		{"layer beyond the file", "testdata/patterns.json", 2},
		{"layer unknown", "testdata/patterns.json", -1},
		{"pattern unknown", "testdata/patterns.json", 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := minference.New(kernel.New(oracle.New())).Select(context.Background(), newRequest(c.patterns, c.layer))
			if e := core.AsError(err); e == nil || e.Kind != core.ErrInvalidArgument {
				t.Errorf("error %v, want invalid_argument", err)
			}
		})
	}
}
