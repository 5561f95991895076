package kernel_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/streaming"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

func TestShortPromptsAreDenseWhereThatIsFaster(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crossover.json")
	if err := os.WriteFile(path, []byte(`{"backend": "oracle", "dense_up_to": {"streaming": {"float32/64": 400}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	measured, err := kernel.ReadCrossover(path)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := *measured
	elsewhere.Backend = "cpu:avx2"
	cases := []struct {
		name      string
		crossover *kernel.Crossover
		keys, dim int
		dense     bool
	}{
		{"at the limit", measured, 400, 16, true},
		{"above it", measured, 401, 16, false},
		{"head_dim that was not measured", measured, 400, 80, false},
		{"another backend", &elsewhere, 400, 16, false},
		{"not measured", nil, 400, 16, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := request.Random(1, request.Shape{Batch: 1, Heads: 1, KVHeads: 1, Queries: c.keys, Keys: c.keys, Dim: c.dim})
			req.Params = core.Params{"sink": int64(32), "recent": int64(32), "block_size": int64(32)}
			selection, err := streaming.New(kernel.New(oracle.New()).WithCrossover(c.crossover)).Select(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			if (selection.Mask == nil) != c.dense || c.dense != strings.Contains(selection.Reason, "400 tokens") {
				t.Errorf("dense %v, because %q", selection.Mask == nil, selection.Reason)
			}
		})
	}
}

func TestBadCrossoverFiles(t *testing.T) {
	folder := t.TempDir()
	if c, err := kernel.ReadCrossover(filepath.Join(folder, "none.json")); c != nil || err != nil {
		t.Errorf("no file: %v, %v", c, err)
	}
	path := filepath.Join(folder, "bad.json")
	if err := os.WriteFile(path, []byte("["), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.ReadCrossover(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("broken file: %v", err)
	}
}
