package sdktest

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

// The suite must find what is wrong: the test binary runs it on a strategy with
// one mistake.
const plantedVariable = "TRIVIUM_SDKTEST_PLANTED"

func TestMain(m *testing.M) { Main(m, planted()) }

func planted() sdk.Config {
	return sdk.Config{Strategies: []core.Strategy{mistaken{os.Getenv(plantedVariable)}}}
}

// mistaken attends to nearby tokens, and has one mistake.
type mistaken struct{ mistake string }

func (mistaken) Info() core.Info {
	return core.Info{
		Name: "mistaken", Kind: core.Attention, Summary: "has a mistake", License: "Apache-2.0", Version: "1",
		Parameters: []core.Parameter{{Name: "recent", Type: core.Int, Default: int64(30), Min: core.Bound(1), Doc: "tokens"}},
		Capabilities: core.Capabilities{
			GQA: true, Varlen: true, Chunked: true, Deterministic: true, ChunkRule: "same", Dtypes: []string{"float32", "bfloat16", "float16"},
		},
	}
}

func (mistaken) Select(context.Context, *core.AttentionRequest) (*core.Selection, error) {
	return &core.Selection{Reason: "by token"}, nil
}

func (m mistaken) Attend(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	recent := req.Params.Int("recent")
	changed := *req
	rule := func(p sdk.Pair) bool { return p.Query-p.Key < recent }
	switch m.mistake {
	case "looks ahead":
		changed.Causal = false
		rule = func(p sdk.Pair) bool { return p.Query-p.Key < recent && p.Key <= p.Query+1 }
	case "ignores force_dense":
		changed.ForceDense = false
	case "sees other sequences":
		changed.CuSeqlens = nil
	case "chunks count from zero":
		changed.QueryOffset, changed.Causal = nil, false
		shift := 0
		if req.QueryOffset != nil {
			shift = int(req.QueryOffset[0])
		}
		rule = func(p sdk.Pair) bool { return p.Key <= p.Query+shift && p.Query-p.Key < recent }
	case "chance":
		chance := rand.IntN(40)
		rule = func(p sdk.Pair) bool { return p.Query-p.Key < 1+chance }
	case "deaf":
		if req.Query.Dim(2) > 500 {
			time.Sleep(3 * time.Second)
		}
	case "panics":
		if req.Query.Dim(2) == 17 {
			panic("at 17")
		}
	case "leaks descriptors":
		if _, err := os.Open("/dev/null"); err != nil {
			return nil, err
		}
		keep.Add(1)
	case "wrong density":
		defer func() { keep.Add(1) }()
	}
	response, err := sdk.AttendWhere(ctx, &changed, rule)
	if err != nil {
		return nil, err
	}
	switch m.mistake {
	case "forgets the scale of lse":
		lse := elementsOf(req.LSE)
		each(req.LSE, func(x ...int) { lse.set(lse.at(x...)+0.1, x...) })
	case "drops a row":
		out := elementsOf(req.Output)
		each(req.Output, func(x ...int) {
			if x[2] == 99 {
				out.set(0, x...)
			}
		})
	case "adds what comes later":
		v, out := elementsOf(req.Value), elementsOf(req.Output)
		each(req.Output, func(x ...int) {
			if x[2]+1 < req.Key.Dim(2) {
				out.set(out.at(x...)+1e-9*v.at(x[0], 0, x[2]+1, x[3]), x...)
			}
		})
	case "wrong density":
		response.Report.Density = 1.5
	}
	return response, nil
}

var keep atomic.Int64

func TestConformance(t *testing.T) { Run(t, planted()) }

func TestFindsMistakes(t *testing.T) {
	if os.Getenv(plantedVariable) != "" {
		t.Skip("this is the run with a mistake")
	}
	for mistake, finds := range map[string]string{
		"looks ahead":              "weights",
		"ignores force_dense":      "dense",
		"sees other sequences":     "packed",
		"chunks count from zero":   "chunks",
		"chance":                   "determinism",
		"deaf":                     "cancellation",
		"panics":                   "shapes",
		"leaks descriptors":        "leaks",
		"forgets the scale of lse": "weights",
		"drops a row":              "weights",
		"adds what comes later":    "future_values",
		"wrong density":            "shapes",
	} {
		t.Run(mistake, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestConformance$/^attention.mistaken$/^"+strings.ReplaceAll(finds, "_", "[ _]")+"$")
			cmd.Env = append(os.Environ(), plantedVariable+"="+mistake)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestConformance/attention.mistaken/"+finds) {
				t.Errorf("not found by %s: %v\n%s", finds, err, out)
			}
		})
	}
}
