package roundtrip

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// another makes the test plugin anew, with other bytes, and the manifest of it.
func another(t *testing.T, dir, name string) host.Manifest {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if _, err := to.WriteString(name); err != nil { // behind what is executed
		t.Fatal(err)
	}
	m := host.Manifest{Name: "tested", File: name, Protocol: 1, Strategies: served().Describe(), Reload: true}
	if m.SHA256, err = host.Checksum(to.Name()); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestReload checks that a call goes to the binary that was built last, and that
// one that runs ends on the binary that it began with.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, another(t, dir, "first"))
	h, engine := start(t, host.Options{Manifests: []string{}, Dirs: []string{dir}, Grant: true, Unconfined: true})
	works(t, h, engine)
	first := pid(h, core.Attention)
	works(t, h, engine)
	if pid(h, core.Attention) != first {
		t.Fatal("another process, though nothing was built")
	}

	slow := make(chan error, 1)
	slowly := request(t, h, core.Params{"behaviour": "late"})
	go func() {
		_, err := engine.Attend(context.Background(), "identity", slowly)
		slow <- err
	}()
	time.Sleep(100 * time.Millisecond)
	write(t, dir, another(t, dir, "second"))
	works(t, h, engine)
	second := pid(h, core.Attention)
	if second == first || second == 0 {
		t.Fatalf("process %d serves, as it did before the binary was built anew", second)
	}
	if err := <-slow; err != nil {
		t.Errorf("the call that ran: %v", err)
	}
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(first))); err != nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the first process is left")
		}
	}

	changed := another(t, dir, "third")
	changed.Strategies[0].Summary = "something else"
	write(t, dir, changed)
	req := request(t, h, nil)
	if _, err := engine.Attend(t.Context(), "identity", req); kindOf(err) != core.ErrPluginRefused {
		t.Errorf("got %v: want that it describes something else", err)
	}
	write(t, dir, another(t, dir, "fourth"))
	works(t, h, engine)
}

// TestPinnedIsNotReloaded: what was agreed to is not exchanged.
func TestPinnedIsNotReloaded(t *testing.T) {
	dir := t.TempDir()
	m := another(t, dir, "first")
	m.Reload = false
	write(t, dir, m)
	h, engine := start(t, host.Options{Manifests: []string{}, Dirs: []string{dir}, Unconfined: true})
	works(t, h, engine)
	first := pid(h, core.Attention)
	write(t, dir, another(t, dir, "second"))
	works(t, h, engine)
	if pid(h, core.Attention) != first {
		t.Error("a plugin whose manifest did not ask for it was exchanged")
	}
}
