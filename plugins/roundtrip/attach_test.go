package roundtrip

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/host"
)

// TestReattach calls a plugin that was started by hand, as in a debugger, and
// that is another one than the manifest's binary.
func TestReattach(t *testing.T) {
	dir := t.TempDir()
	m := manifest(t, dir)
	path := write(t, dir, m)
	os.Remove(filepath.Join(dir, "plugin")) // it is not looked at
	socket := filepath.Join(dir, "s")
	byHand := exec.Command(os.Args[0])
	byHand.Env = append(os.Environ(), plugins.EnvAttach+"="+socket)
	byHand.Stderr = os.Stderr
	if err := byHand.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- byHand.Wait() }()
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it does not wait")
		}
	}
	h, engine := start(t, host.Options{Manifests: []string{path}, Reattach: map[string]string{"tested": socket}})
	works(t, h, engine)
	if got := pid(h, core.Attention); got != byHand.Process.Pid {
		t.Errorf("process %d serves, and %d was started by hand", got, byHand.Process.Pid)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		byHand.Process.Kill()
		t.Error("it outlived its host")
	}
}

func TestNobodyWaits(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, manifest(t, dir))
	h, engine := start(t, host.Options{Manifests: []string{path}, Reattach: map[string]string{"tested": filepath.Join(dir, "none")}})
	if _, err := engine.Attend(t.Context(), "identity", request(t, h, nil)); kindOf(err) != core.ErrPluginRefused {
		t.Errorf("got %v", err)
	}
	t.Setenv(plugins.EnvReattach, "tested")
	if _, err := host.Open(t.Context(), host.Options{Manifests: []string{path}}); kindOf(err) != core.ErrInvalidArgument {
		t.Errorf("a variable that cannot be read: %v", err)
	}
}
