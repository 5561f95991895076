package process

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
	"github.com/trivium-ml/trivium/plugins/sdk"
	"github.com/trivium-ml/trivium/plugins/sdk/sdktest"
)

// thirdParty is what this test binary serves when it is a third party's plugin.
func thirdParty() sdk.Config {
	return sdk.Config{Strategies: []core.Strategy{escape{}, echo{}, tripler{}}}
}

func describe(kind core.StrategyKind, name string, parameters ...core.Parameter) core.Info {
	return core.Info{
		Name: name, Kind: kind, Summary: "for tests", License: "Apache-2.0", Version: "1", Parameters: parameters,
		Capabilities: core.Capabilities{GQA: true, Varlen: true, Chunked: true},
	}
}

// install makes this test binary a plugin in a new folder.
func install(t testing.TB, rights host.Rights, served sdk.Config) string {
	t.Helper()
	return sdktest.Install(t, "third", served, rights)
}

// open opens a host of third parties' plugins, confined by this test binary.
func open(t testing.TB, o host.Options) (*host.Host, *core.Engine) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if o.Launcher == "" {
		o.Launcher = binary
	}
	if o.Log == nil {
		o.Log = logrus.New()
		o.Log.SetOutput(io.Discard)
	}
	h, err := host.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	registry := core.NewRegistry()
	if err := h.Register(registry); err != nil {
		t.Fatal(err)
	}
	return h, core.NewEngine(registry, o.Log)
}

// ask calls a position strategy, whose parameters say what to do.
func ask(ctx context.Context, engine *core.Engine, strategy string, params core.Params) (*core.PositionPlan, error) {
	asked++
	return engine.Plan(ctx, strategy, &core.PositionRequest{HeadDim: 2, InvFreq: []float64{1}, Length: asked, Params: params})
}

// asked makes each request another, since plans are cached.
var asked int64

// plain is a plan that changes nothing.
func plain(req *core.PositionRequest) *core.PositionPlan {
	return &core.PositionPlan{
		InvFreq: req.InvFreq, AppliedInvFreq: req.InvFreq, AttentionScale: 1,
		Bands: []core.Band{{Chunk: 1, Low: -1 << 63, High: 1<<63 - 1, Query: core.Identity(), Key: core.Identity()}},
	}
}

// echo plans nothing special.
type echo struct{}

func (echo) Info() core.Info { return describe(core.Position, "echo") }

func (echo) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	return plain(req), nil
}
