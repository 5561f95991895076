package sdktest

import (
	"context"
	"encoding/json"
	"fmt"
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

// Main is the whole of TestMain: the test binary serves c when a host starts it.
func Main(m *testing.M, c sdk.Config) {
	confine.Enter()
	if sdk.Hosted() {
		sdk.Serve(c)
	}
	os.Exit(m.Run())
}

// Options are what Run needs to know beyond the strategies.
type Options struct {
	// Rights that the plugin's manifest asks for; it gets these and no others.
	Rights host.Rights
	// Python runs a plugin written in Python.
	Python host.Python
}

// Run tries every strategy of c.
func Run(t *testing.T, c sdk.Config, options ...Options) {
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	RunPlugin(t, Install(t, "tested", c, o.Rights), o)
}

// RunPlugin tries every strategy of the plugin with a manifest in a folder.
func RunPlugin(t *testing.T, dir string, options ...Options) {
	t.Helper()
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	names := 0
	for _, info := range open(t, dir, o).engine.List("") {
		if info.Name == kernelName && info.Plugin == "" {
			continue
		}
		names++
		t.Run(info.ID(), func(t *testing.T) {
			s := open(t, dir, o)
			s.info = info
			switch info.Kind {
			case core.Attention:
				s.attention(t)
			case core.Position:
				s.position(t)
			case core.Merge:
				s.merge(t)
			}
		})
	}
	if names == 0 {
		t.Fatal("the plugin serves no strategies")
	}
}

// Install makes the test binary, which serves c when a host starts it, a plugin
// in a new folder.
func Install(t testing.TB, name string, c sdk.Config, rights host.Rights) string {
	t.Helper()
	dir := t.TempDir()
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
	text, err := json.Marshal(host.Manifest{
		Name: name, File: "plugin", SHA256: sum, Protocol: plugins.ProtocolVersion, Strategies: c.Describe(), Rights: rights,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// suite is a host of the plugin under test and one of its strategies.
type suite struct {
	host   *host.Host
	engine *core.Engine
	info   core.Info
}

// open starts a host. When the test ends, nothing of it is left.
func open(t *testing.T, dir string, o Options) *suite {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(logTo{t})
	log.SetLevel(logrus.WarnLevel)
	h, err := host.Open(context.Background(), host.Options{Dirs: []string{dir}, Grant: true, Launcher: binary, Log: log, Python: o.Python})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if m := h.Stats().Memory; m.Live != 0 {
			t.Errorf("%d segments of shared memory were not given back", m.Live)
		}
	})
	for _, p := range h.Plugins() {
		if p.State == host.StateRefused {
			t.Fatalf("the host refuses the plugin: %s", p.Reason)
		}
	}
	registry := core.NewRegistry()
	if err := h.Register(registry); err != nil {
		t.Fatal(err)
	}
	// Fails only when the plugin has a strategy of that name itself.
	_ = registry.Register(kernel{})
	return &suite{host: h, engine: core.NewEngine(registry, log)}
}

type logTo struct{ t *testing.T }

func (l logTo) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

// pid is the process that serves the strategy, 0 if none runs.
func (s *suite) pid() int {
	for _, p := range s.host.Plugins() {
		if p.Kind == s.info.Kind && p.Name == s.info.Plugin {
			return p.PID
		}
	}
	return 0
}

// descriptors are how many the process has open.
func (s *suite) descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// checkDescriptors waits a moment: the host tells of what it dropped when it can.
func (s *suite) checkDescriptors(t *testing.T, before, calls int) {
	t.Helper()
	var now int
	if !within(5*time.Second, func() bool { now = s.descriptors(t); return now <= before+2 }) {
		t.Errorf("%d descriptors are open in the plugin, %d were %d calls before", now, before, calls)
	}
}

// within reports whether something comes true in time.
func within(limit time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// want checks the kind of an error, and that it says which strategy it is of.
func (s *suite) want(t *testing.T, err error, kinds ...core.ErrorKind) {
	t.Helper()
	if err == nil {
		t.Errorf("no error: want one of kind %v", kinds)
		return
	}
	typed := core.AsError(err)
	for _, kind := range kinds {
		if typed.Kind == kind && typed.Strategy != "" {
			return
		}
	}
	t.Errorf("got an error of kind %s, strategy %q (%v): want one of kind %v that names the strategy", typed.Kind, typed.Strategy, err, kinds)
}

// badParameters are values that Info does not allow.
func (s *suite) badParameters() map[string]core.Params {
	bad := map[string]core.Params{"unknown": {"no_such_parameter": int64(1)}}
	for _, p := range s.info.Parameters {
		bad[p.Name+" of another type"] = core.Params{p.Name: struct{}{}}
		if p.Min != nil {
			bad[p.Name+" too small"] = core.Params{p.Name: *p.Min - 1}
		}
		if p.Max != nil {
			bad[p.Name+" too large"] = core.Params{p.Name: *p.Max + 1}
		}
		if len(p.Choices) > 0 {
			bad[p.Name+" not a choice"] = core.Params{p.Name: "no such choice"}
		}
	}
	return bad
}
