package roundtrip

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/confine"
	"github.com/trivium-ml/trivium/plugins/host"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

func TestMain(m *testing.M) {
	confine.Enter()
	if sdk.Hosted() || os.Getenv(plugins.EnvAttach) != "" {
		sdk.Serve(served())
	}
	os.Exit(m.Run())
}

// manifest describes this test binary, a link to which is put in dir.
func manifest(t testing.TB, dir string) host.Manifest {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(dir, "plugin")); err != nil {
		t.Fatal(err)
	}
	sum, err := host.Checksum(binary)
	if err != nil {
		t.Fatal(err)
	}
	return host.Manifest{Name: "tested", File: "plugin", SHA256: sum, Protocol: plugins.ProtocolVersion, Strategies: served().Describe()}
}

func write(t testing.TB, dir string, m host.Manifest) string {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tested.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start opens a host of the test plugin. When the test ends, no memory is live
// and no process is left.
func start(t testing.TB, o host.Options) (*host.Host, *core.Engine) {
	t.Helper()
	descriptors := openDescriptors(t)
	dir := t.TempDir()
	if o.Manifests == nil {
		o.Manifests = []string{write(t, dir, manifest(t, dir))}
	}
	if o.Log == nil {
		o.Log = logrus.New()
		o.Log.SetOutput(testWriter{t})
		o.Log.SetLevel(logrus.WarnLevel)
	}
	h, err := host.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		for _, p := range h.Plugins() {
			if p.PID != 0 {
				t.Errorf("%s process %d is left", p.Kind, p.PID)
			}
		}
		if m := h.Stats().Memory; m.Live != 0 || m.LiveBytes != 0 {
			t.Errorf("%d segments, %d bytes, were not given back", m.Live, m.LiveBytes)
		}
		for limit := time.Now().Add(2 * time.Second); openDescriptors(t) > descriptors; time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%d descriptors are open, %d were before", openDescriptors(t), descriptors)
			}
		}
	})
	registry := core.NewRegistry()
	if err := h.Register(registry); err != nil {
		t.Fatal(err)
	}
	return h, core.NewEngine(registry, o.Log)
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// request is a small attention call on tensors of the pool.
func request(t *testing.T, h *host.Host, params core.Params) *core.AttentionRequest {
	t.Helper()
	req := &core.AttentionRequest{
		Query: shared(t, h.Pool(), 1, 4, 100, 8), Key: shared(t, h.Pool(), 1, 2, 100, 8), Value: shared(t, h.Pool(), 1, 2, 100, 8),
		Output: shared(t, h.Pool(), 1, 4, 100, 8), LSE: shared(t, h.Pool(), 1, 4, 100), Causal: true, Layer: -1, Params: params,
	}
	number(req.Query, 1)
	return req
}

// checkIdentity checks that the output is factor times the query.
func checkIdentity(t *testing.T, req *core.AttentionRequest, factor float32) {
	t.Helper()
	q, out, s := strided(req.Query), strided(req.Output), req.Query.Shape()
	for b := range s[0] {
		for h := range s[1] {
			for i := range s[2] {
				for d := range s[3] {
					if want, got := factor**q.at(b, h, i, d), *out.at(b, h, i, d); got != want {
						t.Fatalf("output[%d,%d,%d,%d] = %g, want %g", b, h, i, d, got, want)
					}
				}
				if req.LSE != nil {
					if want, got := float32(b*10000+h*100+i), *strided(req.LSE).at(b, h, i); got != want {
						t.Fatalf("lse[%d,%d,%d] = %g, want %g", b, h, i, got, want)
					}
				}
			}
		}
	}
}

func kindOf(err error) core.ErrorKind {
	if err == nil {
		return ""
	}
	return core.AsError(err).Kind
}
