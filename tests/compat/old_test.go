// Package compat checks that plugins of earlier releases work with this host.
// What such a plugin was built from lies in testdata: the SDK as it was
// released, and a plugin as its author wrote it.
package compat

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
	"github.com/trivium-ml/trivium/plugins/sdk"
	"github.com/trivium-ml/trivium/plugins/sdk/sdktest"
)

// The test binary confines the old plugin; it serves nothing itself.
func TestMain(m *testing.M) { sdktest.Main(m, sdk.Config{}) }

func TestPluginOfProtocol1(t *testing.T) {
	dir := build(t, "sdk-protocol1.tar.gz")
	sdktest.RunPlugin(t, dir)
}

// TestManifestOfTheFuture checks that fields that this host does not know do
// not keep it from using a plugin.
func TestManifestOfTheFuture(t *testing.T) {
	dir := build(t, "sdk-protocol1.tar.gz")
	path := filepath.Join(dir, "manifest.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	fields["invented_later"] = map[string]any{"x": 1}
	if text, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	sdktest.RunPlugin(t, dir)
}

// build makes the old plugin as its author did, from the SDK of an archive.
func build(t *testing.T, archive string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a plugin")
	}
	work, dir := t.TempDir(), t.TempDir()
	module := filepath.Join(work, "trivium")
	if err := os.Mkdir(module, 0o700); err != nil {
		t.Fatal(err)
	}
	unpack(t, filepath.Join("testdata", archive), module)
	source, err := os.ReadFile("testdata/plugin/main.go.txt")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"main.go": source, "go.mod": requirements(mod), "go.sum": sum} {
		if err := os.WriteFile(filepath.Join(work, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "old")
	run(t, work, "go", "build", "-o", binary, ".")
	described := run(t, work, binary, "--describe")
	var infos []core.Info
	if err := json.Unmarshal(described, &infos); err != nil {
		t.Fatal(err)
	}
	hash, err := host.Checksum(binary)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(host.Manifest{Name: "old", File: "old", SHA256: hash, Protocol: 1, Strategies: infos})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func unpack(t *testing.T, archive, to string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(packed); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var text []byte
			if text, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, text, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// requirements makes the plugin's go.mod from that of the SDK.
func requirements(sdk []byte) []byte {
	lines := []string{"module example.com/old", "go 1.26.0", "replace github.com/trivium-ml/trivium => ./trivium", "require github.com/trivium-ml/trivium v0.0.0"}
	for _, found := range regexp.MustCompile(`(?m)^\t(\S+ v\S+)`).FindAllSubmatch(sdk, -1) {
		lines = append(lines, "require "+string(found[1])+" // indirect")
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod -trimpath -buildvcs=false")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, stderr.Bytes())
	}
	return out
}
