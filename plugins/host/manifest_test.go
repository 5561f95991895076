package host

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
)

func described() core.Info {
	return core.Info{
		Name: "x", Kind: core.Attention, Summary: "s", License: "l", Version: "1", Parameters: []core.Parameter{
			{Name: "int", Type: core.Int, Default: int64(128), Min: core.Bound(16)},
			{Name: "float", Type: core.Float, Default: 1.0},
			{Name: "bool", Type: core.Bool, Default: true},
			{Name: "string", Type: core.String, Default: "a", Choices: []string{"a", "b"}},
			{Name: "floats", Type: core.Floats, Default: []float64{1, 2.5}},
			{Name: "unset", Type: core.Int},
		},
	}
}

func TestReadManifest(t *testing.T) {
	good := Manifest{Name: "p", File: "bin/p", SHA256: strings.Repeat("a", 64), Protocol: plugins.ProtocolVersion, Strategies: []core.Info{described()}}
	dir := t.TempDir()
	path := filepath.Join(dir, "p.json")
	read := func(m Manifest) (*Manifest, error) {
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadManifest(path)
	}
	m, err := read(good)
	if err != nil {
		t.Fatal(err)
	}
	want := described()
	want.Plugin = "p"
	if !reflect.DeepEqual(m.Strategies[0], want) {
		t.Errorf("got %+v, want %+v", m.Strategies[0], want)
	}
	if m.path != filepath.Join(dir, "bin/p") {
		t.Errorf("binary %s", m.path)
	}
	for _, test := range []struct {
		name  string
		spoil func(*Manifest)
	}{
		{"no name", func(m *Manifest) { m.Name = "" }},
		{"absolute file", func(m *Manifest) { m.File = "/bin/p" }},
		{"no checksum", func(m *Manifest) { m.SHA256 = "" }},
		{"no protocol", func(m *Manifest) { m.Protocol = 0 }},
		{"kind", func(m *Manifest) { m.Strategies[0].Kind = "other" }},
		{"strategy without a name", func(m *Manifest) { m.Strategies[0].Name = "" }},
		{"default out of bounds", func(m *Manifest) { m.Strategies[0].Parameters[0].Default = int64(1) }},
		{"default of another type", func(m *Manifest) { m.Strategies[0].Parameters[2].Default = "yes" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := good
			bad.Strategies = []core.Info{described()}
			test.spoil(&bad)
			if _, err := read(bad); core.AsError(err) == nil || core.AsError(err).Kind != core.ErrPluginRefused {
				t.Errorf("got %v, want plugin_refused", err)
			}
		})
	}
	if err := os.WriteFile(path, []byte(`{"name": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadManifest(path); core.AsError(err) == nil || core.AsError(err).Kind != core.ErrPluginRefused {
		t.Errorf("not a manifest: %v", err)
	}
}
