package process

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// TestCostOfConfinement times starts and calls with and without confinement,
// in turns. In a campaign it holds the goals: 10 ms a start, 1 % a call.
func TestCostOfConfinement(t *testing.T) {
	launcher := filepath.Join(t.TempDir(), "launcher") // as it is shipped: this test binary would be a slow one
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", launcher, "../../plugins/confine/launcher")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	starts, calls := campaign(3, 40), campaign(200, 20_000)
	var took [2][]time.Duration
	var engines [2]*core.Engine
	var requests [2]*core.AttentionRequest
	for range starts {
		for confined := range 2 {
			h, engine := open(t, host.Options{Unconfined: confined == 0, Launcher: launcher, Dirs: []string{install(t, host.Rights{}, thirdParty())}})
			req := attention(t, h)
			number(t, req.Query)
			began := time.Now()
			if _, err := engine.Attend(t.Context(), "tripler", req); err != nil {
				t.Fatal(err)
			}
			took[confined] = append(took[confined], time.Since(began))
			if engines[confined] == nil {
				engines[confined], requests[confined] = engine, req
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := h.Close(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
	}
	free, bound := median(took[0]), median(took[1])
	t.Logf("start and first call: %v, confined %v: %v more (p50 of %d)", free, bound, bound-free, starts)
	if starts >= 40 && bound-free > 10*time.Millisecond {
		t.Errorf("confinement costs %v a start: want at most 10 ms", bound-free)
	}
	took = [2][]time.Duration{}
	for range calls {
		for confined := range 2 {
			began := time.Now()
			if _, err := engines[confined].Attend(t.Context(), "tripler", requests[confined]); err != nil {
				t.Fatal(err)
			}
			took[confined] = append(took[confined], time.Since(began))
		}
	}
	free, bound = median(took[0]), median(took[1])
	t.Logf("call: %v, confined %v: %.2f %% more (p50 of %d)", free, bound, 100*(float64(bound)/float64(free)-1), calls)
	if calls >= 20_000 && float64(bound) > 1.01*float64(free)+float64(2*time.Microsecond) {
		t.Errorf("confinement costs %.2f %% a call: want at most 1 %%", 100*(float64(bound)/float64(free)-1))
	}
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}
