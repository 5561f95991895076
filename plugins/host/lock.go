package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/trivium-ml/trivium/core"
)

// Lock is plugins.lock: the third-party plugins that somebody agreed to, with
// the hashes of what they agreed to and the rights that they granted. It is
// meant to be committed beside the code that uses the plugins.
type Lock struct {
	Version int                    `json:"version"`
	Plugins map[string]LockedEntry `json:"plugins"` // by name
}

// LockedEntry is one plugin of a Lock.
type LockedEntry struct {
	Version    string            `json:"version"`
	Manifest   string            `json:"manifest"`  // SHA-256 of the manifest, in hex
	Platforms  map[string]string `json:"platforms"` // SHA-256 of the binary for each
	Strategies []string          `json:"strategies"`
	Rights     Rights            `json:"rights,omitzero"` // granted
	Source     string            `json:"source,omitempty"`
}

const (
	lockVersion = 1
	maxLock     = 1 << 20

	addHint = "run: trivium plugin add"
)

// ReadLock reads a lock file. One that is not there is empty.
func ReadLock(path string) (*Lock, error) {
	text, err := readBounded(path, maxLock)
	if errors.Is(err, fs.ErrNotExist) {
		return &Lock{Version: lockVersion}, nil
	}
	if err != nil {
		return nil, core.Errorf(core.ErrPluginRefused, "lock file cannot be read: %w", err)
	}
	l, err := ParseLock(text)
	if err != nil {
		return nil, core.Errorf(core.ErrPluginRefused, "lock file %s: %w", path, err).
			WithHint("restore it from version control, or remove it and add the plugins again")
	}
	return l, nil
}

// ParseLock reads a lock strictly: what it does not know could be a right.
func ParseLock(text []byte) (*Lock, error) {
	l := &Lock{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(l); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("there is something after its end")
	}
	if l.Version != lockVersion {
		return nil, fmt.Errorf("version %d: want %d", l.Version, lockVersion)
	}
	for name, entry := range l.Plugins {
		if err := entry.check(name); err != nil {
			return nil, fmt.Errorf("plugin %q: %w", name, err)
		}
	}
	return l, nil
}

func (e *LockedEntry) check(name string) error {
	if !pluginName.MatchString(name) {
		return errors.New("its name: want letters, digits, dots, dashes and underscores, at most 64")
	}
	if !hexDigits.MatchString(e.Manifest) {
		return fmt.Errorf("manifest %q: want 64 hex digits", e.Manifest)
	}
	if len(e.Platforms) == 0 {
		return errors.New("no platforms: want at least one")
	}
	for platform, sum := range e.Platforms {
		if !hexDigits.MatchString(sum) {
			return fmt.Errorf("platform %q: %q: want 64 hex digits", platform, sum)
		}
	}
	return e.Rights.check()
}

// differs says how a manifest differs from what was agreed to, "" when it does not.
func (e *LockedEntry) differs(m *Manifest) string {
	switch {
	case e.Manifest != m.sha256:
		return fmt.Sprintf("its manifest has SHA-256 %s, and the lock says %s", m.sha256, e.Manifest)
	case !maps.Equal(e.Platforms, m.binaries()):
		return "its binaries are not those of the lock"
	case !e.Rights.equal(m.Rights):
		return "it asks for other rights than the lock grants"
	}
	return ""
}

// locked opens the plugins of the lock from the store, where each has a folder
// named after its manifest. What cannot be used is refused by itself.
func (h *Host) locked(lock *Lock) []*Manifest {
	var manifests []*Manifest
	for _, name := range slices.Sorted(maps.Keys(lock.Plugins)) {
		entry := lock.Plugins[name]
		m, err := entry.open(name, h.options.Store)
		if err != nil {
			h.refuse(name, err)
			continue
		}
		manifests = append(manifests, m)
	}
	return manifests
}

func (e *LockedEntry) open(name, store string) (*Manifest, error) {
	path := filepath.Join(store, e.Manifest, "manifest.json")
	m, err := ReadManifest(path)
	if errors.Is(err, &core.Error{Kind: core.ErrPluginMissing}) {
		return nil, core.Errorf(core.ErrPluginMissing, "plugin %s is in the lock, but not installed here", name).
			WithHint("%s %s", addHint, e.Source)
	}
	if err != nil {
		return nil, err
	}
	if m.Name != name {
		return nil, core.Errorf(core.ErrPluginRefused, "plugin %s: its manifest is of %s", name, m.Name).WithHint(addHint)
	}
	if difference := e.differs(m); difference != "" {
		return nil, core.Errorf(core.ErrPluginRefused, "plugin %s: %s", name, difference).WithHint("%s, if you trust the change", addHint)
	}
	return m, nil
}

// admit says why a plugin that was found in a folder may not be used beside
// those of the lock, nil if it may.
func (h *Host) admit(m *Manifest, lock *Lock) error {
	if entry, ok := lock.Plugins[m.Name]; ok {
		if difference := entry.differs(m); difference != "" {
			return core.Errorf(core.ErrPluginRefused, "plugin %s: %s", m.Name, difference).WithHint("%s %s, if you trust the change", addHint, m.dir)
		}
		return nil
	}
	if h.options.Locked {
		return core.Errorf(core.ErrPluginRefused, "plugin %s (manifest %s) is not in the lock", m.Name, m.sha256).
			WithHint("%s %s", addHint, m.dir)
	}
	if !m.Rights.none() && !h.options.Unconfined && !h.options.Grant {
		return core.Errorf(core.ErrPluginRefused, "plugin %s asks for rights that nobody granted: %s", m.Name, m.Rights).
			WithHint("%s %s", addHint, m.dir)
	}
	return nil
}

// DefaultStore is where plugins that were added are kept.
func DefaultStore(getenv func(string) string) string {
	base := getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "trivium", "plugins")
}
