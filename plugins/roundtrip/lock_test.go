package roundtrip

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// locked is a store with the test plugin, and a lock that has it.
type locked struct {
	store, folder string
	manifest      host.Manifest
	lock          host.Lock
}

func newLocked(t *testing.T, rights host.Rights) *locked {
	t.Helper()
	l := &locked{store: t.TempDir()}
	l.folder = filepath.Join(l.store, "new")
	if err := os.Mkdir(l.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	l.manifest = manifest(t, l.folder)
	l.manifest.Rights = rights
	sum := l.writeManifest(t)
	l.lock = host.Lock{Version: 1, Plugins: map[string]host.LockedEntry{"tested": {
		Version: "1", Manifest: sum, Platforms: map[string]string{host.Platform(): l.manifest.SHA256}, Strategies: []string{"attention.identity"}, Rights: rights,
	}}}
	return l
}

// writeManifest moves the folder to where its manifest belongs, and gives that hash.
func (l *locked) writeManifest(t *testing.T) string {
	t.Helper()
	text, err := json.Marshal(l.manifest)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(text)
	sum := hex.EncodeToString(hash[:])
	if err := os.WriteFile(filepath.Join(l.folder, "manifest.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(l.store, sum)
	if err := os.Rename(l.folder, to); err != nil {
		t.Fatal(err)
	}
	l.folder = to
	return sum
}

func (l *locked) options(t *testing.T) host.Options {
	t.Helper()
	text, err := json.Marshal(l.lock)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.store, "plugins.lock")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return host.Options{Manifests: []string{}, Lock: path, Store: l.store, Launcher: binary}
}

func (l *locked) change(f func(*host.LockedEntry)) {
	entry := l.lock.Plugins["tested"]
	f(&entry)
	l.lock.Plugins["tested"] = entry
}

func TestLocked(t *testing.T) {
	rights := host.Rights{Read: []string{"/var/empty"}, MemoryMiB: 900}
	for _, test := range []struct {
		name    string
		spoil   func(t *testing.T, l *locked)
		refused string
		kind    core.ErrorKind // of a call, when the host does not refuse it before
	}{
		{"as it was added", func(*testing.T, *locked) {}, "", ""},
		{"another manifest", func(_ *testing.T, l *locked) {
			os.WriteFile(filepath.Join(l.folder, "manifest.json"), []byte(`{"name":"tested"}`), 0o600)
		}, "manifest", ""},
		{"a manifest with another blank", func(t *testing.T, l *locked) {
			f, err := os.OpenFile(filepath.Join(l.folder, "manifest.json"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteString(" ")
		}, "its manifest has SHA-256", ""},
		{"more rights in the lock", func(_ *testing.T, l *locked) {
			l.change(func(e *host.LockedEntry) { e.Rights.Net = true })
		}, "other rights", ""},
		{"fewer rights in the lock", func(_ *testing.T, l *locked) {
			l.change(func(e *host.LockedEntry) { e.Rights = host.Rights{} })
		}, "other rights", ""},
		{"another binary in the lock", func(_ *testing.T, l *locked) {
			l.change(func(e *host.LockedEntry) { e.Platforms[host.Platform()] = strings.Repeat("0", 64) })
		}, "not those of the lock", ""},
		{"another binary", func(t *testing.T, l *locked) {
			path := filepath.Join(l.folder, "plugin")
			os.Remove(path)
			if err := os.WriteFile(path, []byte("\x7fELF"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "", core.ErrPluginRefused},
		{"not on this machine", func(_ *testing.T, l *locked) { os.RemoveAll(l.folder) }, "not installed here", ""},
		{"another name", func(_ *testing.T, l *locked) {
			l.lock.Plugins["other"] = l.lock.Plugins["tested"]
			delete(l.lock.Plugins, "tested")
		}, "its manifest is of tested", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLocked(t, rights)
			test.spoil(t, l)
			h, engine := start(t, l.options(t))
			status := h.Plugins()
			if test.refused != "" {
				if len(status) != 1 || status[0].State != host.StateRefused || !strings.Contains(status[0].Reason, test.refused) {
					t.Errorf("plugins %+v: want it refused: %s", status, test.refused)
				}
				return
			}
			_, err := engine.Attend(t.Context(), "identity", request(t, h, nil))
			if kindOf(err) != test.kind {
				t.Errorf("call: %v", err)
			}
			if s := h.Plugins()[0]; !s.Confined || s.Rights != rights.String() {
				t.Errorf("status %+v: want it confined, with its rights", s)
			}
		})
	}
}

func TestBadLocks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "plugins.lock")
	for _, text := range []string{
		"", "{", "[]", "null", `{"version":2}`, `{"version":1,"plugins":{"x":{}}}`, `{"version":1,"more":1}`, `{"version":1} {}`,
		`{"version":1,"plugins":{"../x":{"manifest":"` + strings.Repeat("0", 64) + `","platforms":{"a":"` + strings.Repeat("0", 64) + `"}}}}`,
		`{"version":1,"plugins":{"x":{"manifest":"../../../../etc","platforms":{"a":"` + strings.Repeat("0", 64) + `"}}}}`,
		`{"version":1,"plugins":{"x":{"manifest":"` + strings.Repeat("0", 64) + `","platforms":{"a":"` + strings.Repeat("0", 64) + `"},"rights":{"everything":true}}}}`,
		`{"version":1,"plugins":{"x":{"manifest":"` + strings.Repeat("0", 64) + `","platforms":{"a":"` + strings.Repeat("0", 64) + `"},"rights":{"read":["etc"]}}}}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Open(t.Context(), host.Options{Lock: path}); kindOf(err) != core.ErrPluginRefused {
			t.Errorf("%q: got %v, want it refused", text, err)
		}
	}
}

func TestUnknownPlugins(t *testing.T) {
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := newLocked(t, host.Rights{})
	for _, test := range []struct {
		name   string
		rights host.Rights
		o      host.Options
		works  bool
	}{
		{"not locked", host.Rights{}, host.Options{}, true},
		{"locked", host.Rights{}, host.Options{Locked: true}, false},
		{"rights that nobody granted", host.Rights{Net: true}, host.Options{}, false},
		{"rights that were granted", host.Rights{Net: true}, host.Options{Grant: true}, true},
		{"another than the lock's", host.Rights{MemoryMiB: 77}, l.options(t), false},
		{"no launcher", host.Rights{}, host.Options{Launcher: "none"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			m := manifest(t, dir)
			m.Rights = test.rights
			write(t, dir, m)
			o := test.o
			o.Manifests, o.Dirs = []string{}, []string{dir}
			switch o.Launcher {
			case "":
				o.Launcher = binary
			case "none":
				o.Launcher = ""
			}
			if test.name == "another than the lock's" {
				os.RemoveAll(l.folder) // what the lock has is not there: only the other is
			}
			h, engine := start(t, o)
			_, err := engine.Attend(t.Context(), "identity", request(t, h, nil))
			if (err == nil) != test.works {
				t.Errorf("call: %v, plugins %+v", err, h.Plugins())
			}
		})
	}
}

// TestNameTaken checks that a third-party plugin cannot push a strategy aside,
// nor keep the engine from starting.
func TestNameTaken(t *testing.T) {
	trusted, third := t.TempDir(), t.TempDir()
	m := manifest(t, third)
	m.Name = "imitation"
	write(t, third, m)
	h, engine := start(t, host.Options{Manifests: []string{write(t, trusted, manifest(t, trusted))}, Dirs: []string{third}, Unconfined: true})
	works(t, h, engine)
	refused := 0
	for _, p := range h.Plugins() {
		if p.Name == "imitation" && p.State == host.StateRefused && strings.Contains(p.Reason, "registered already") {
			refused++
		}
	}
	if refused != len(m.Strategies) {
		t.Errorf("%d strategies refused, want %d: %+v", refused, len(m.Strategies), h.Plugins())
	}
}

func TestDefaults(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, manifest(t, dir))
	h, engine := start(t, host.Options{Manifests: []string{path}, Defaults: map[string]core.Params{"attention.identity": {"factor": 3.0}}})
	req := request(t, h, nil)
	if _, err := engine.Attend(t.Context(), "identity", req); err != nil {
		t.Fatal(err)
	}
	checkIdentity(t, req, 3)
	for _, bad := range []core.Params{{"facto": 3.0}, {"factor": "much"}} {
		h, err := host.Open(t.Context(), host.Options{Manifests: []string{path}, Defaults: map[string]core.Params{"attention.identity": bad}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Register(core.NewRegistry()); kindOf(err) != core.ErrInvalidArgument || !strings.Contains(err.Error(), "settings") {
			t.Errorf("%v: got %v", bad, err)
		}
		h.Close(t.Context())
	}
}
