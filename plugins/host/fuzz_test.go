package host

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
)

const digits = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// FuzzManifest wants every accepted manifest to name files below its folder,
// hashes, rights and strategies that can be used, and to be the same when it is
// written and read again.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{
		`{"name":"x","file":"bin/x","sha256":"` + digits + `","protocol":1,"strategies":[]}`,
		`{"name":"x","file":"../../bin/sh","sha256":"` + digits + `","protocol":1}`, `{"name":"../x","file":"x","sha256":"` + digits + `","protocol":1}`,
		`{"name":"x","file":"x","sha256":"` + digits + `","protocol":1,"rights":{"read":["/a/../etc"]}}`,
		`{"name":"x","protocol":1,"platforms":{"linux-amd64":{"file":"x","sha256":"` + digits + `"}},"rights":{"net":true,"read":["/a"],"memory_mib":5}}`,
		`{"name":"x","file":"x","sha256":"` + digits + `","protocol":1,"interpreter":"python","transport":"plain","strategies":[` +
			`{"name":"s","kind":"attention","parameters":[{"name":"p","type":"float","default":1,"min":0,"max":2,"doc":"d"}],"capabilities":{}}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		if err != nil {
			if core.AsError(err).Message == "" {
				t.Fatal("an error without a message")
			}
			return
		}
		if !filepath.IsLocal(m.File) || !hexDigits.MatchString(m.SHA256) || !pluginName.MatchString(m.Name) {
			t.Fatalf("accepted name %q, file %q, sha256 %q", m.Name, m.File, m.SHA256)
		}
		if m.Protocol < plugins.OldestProtocol || m.Protocol > plugins.ProtocolVersion {
			t.Fatalf("accepted protocol %d", m.Protocol)
		}
		checkRights(t, m.Rights)
		for _, info := range m.Strategies {
			if _, err := info.Validate(nil, 0); err != nil {
				t.Fatalf("accepted %s, whose own defaults are refused: %v", info.ID(), err)
			}
			registry := core.NewRegistry()
			s := &service{host: &Host{}, plugin: m.Name, kind: info.Kind}
			if err := registry.Register(s.adapter(info)); err != nil {
				t.Fatal(err)
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Fatalf("written as %s: %v", again, err)
		}
	})
}

// FuzzLock wants every accepted lock to name a folder of the store and nothing
// outside of it, and to grant only rights that are known.
func FuzzLock(f *testing.F) {
	for _, seed := range []string{
		`{"version":1}`, `{"version":1,"plugins":{}}`,
		`{"version":1,"plugins":{"x":{"manifest":"../../../../tmp","platforms":{"a":"` + digits + `"}}}}`,
		`{"version":1,"plugins":{"x":{"manifest":"` + digits + `","platforms":{"a":"` + digits + `"},"rights":{"write":["/a/../etc"]}}}}`,
		`{"version":1,"plugins":{"x":{"version":"1","manifest":"` + digits + `","platforms":{"linux-amd64":"` + digits + `"},"strategies":["attention.x"],"rights":{"gpu":true,"write":["/tmp/x"]},"source":"s"}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseLock(text)
		if err != nil {
			return
		}
		for name, entry := range l.Plugins {
			path := filepath.Join("/store", entry.Manifest, "manifest.json")
			if filepath.Dir(filepath.Dir(path)) != "/store" || !pluginName.MatchString(name) {
				t.Fatalf("accepted %q, manifest %q", name, entry.Manifest)
			}
			checkRights(t, entry.Rights)
			for _, sum := range entry.Platforms {
				if !hexDigits.MatchString(sum) {
					t.Fatalf("accepted hash %q", sum)
				}
			}
		}
		again, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLock(again); err != nil {
			t.Fatalf("written as %s: %v", again, err)
		}
	})
}

func checkRights(t *testing.T, r Rights) {
	t.Helper()
	for _, path := range append(r.Read, r.Write...) {
		if !strings.HasPrefix(path, "/") || strings.Contains("/"+path+"/", "/../") {
			t.Fatalf("accepted path %q", path)
		}
	}
	if r.memory() == 0 || r.MemoryMiB < 0 || r.none() && (r.Net || r.GPU || r.Processes || len(r.Read)+len(r.Write) > 0) {
		t.Fatalf("accepted rights %+v", r)
	}
}

// FuzzHandshake wants the host to connect to no socket but one in the directory
// that it made, whatever the plugin's first line says.
func FuzzHandshake(f *testing.F) {
	const sockets = "/run/user/0/.trivium-run-1-2/plugin-dir3"
	for _, seed := range []string{
		"1|1|unix|" + sockets + "/plugin4|grpc|", "1|1|unix|" + sockets + "/../../other|grpc", "1|1|tcp|127.0.0.1:22|grpc",
		"1|1|unix|@abstract|grpc", "1|1|unix||grpc", "|||||", "1|1|unix|" + sockets + "|grpc",
	} {
		f.Add(seed)
	}
	c := &child{sockets: sockets}
	f.Fuzz(func(t *testing.T, line string) {
		parts := strings.Split(strings.TrimSpace(line), "|") // as go-plugin does
		if len(parts) < 4 {
			return
		}
		network, address, err := c.PluginToHost(parts[2], parts[3])
		if err != nil {
			return
		}
		name, below := strings.CutPrefix(filepath.Clean(address), sockets+"/")
		if network != "unix" || !below || strings.Contains(name, "/") || name == "" || name == ".." {
			t.Fatalf("the line %q leads to %s %q", line, network, address)
		}
	})
}
