package host

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
)

// Manifest lies beside a plugin's binary and says what is in it, so that its
// strategies can be listed without starting it, and only the binary that its
// author meant is started.
type Manifest struct {
	Name       string      `json:"name"`
	File       string      `json:"file"`   // the binary, relative to the manifest
	SHA256     string      `json:"sha256"` // of the binary, in hex; see Checksum
	Protocol   int         `json:"protocol"`
	Strategies []core.Info `json:"strategies"` // what the binary prints for --describe

	path string // of the binary
}

const reinstall = "reinstall the package that ships it, or name the right path"

// ReadManifest reads and checks a manifest. The binary is looked at when it is
// started.
func ReadManifest(path string) (*Manifest, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, core.Errorf(core.ErrPluginMissing, "plugin manifest %s does not exist", path).
			WithHint(reinstall)
	}
	if err != nil {
		return nil, core.Errorf(core.ErrPluginRefused, "plugin manifest cannot be read: %w", err)
	}
	m := &Manifest{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, refusedManifest(path, err)
	}
	if err := m.check(); err != nil {
		return nil, refusedManifest(path, err)
	}
	m.path = filepath.Join(filepath.Dir(path), m.File)
	return m, nil
}

// refusedManifest keeps the hint of the cause, if it has one.
func refusedManifest(path string, cause error) error {
	why := core.AsError(cause)
	hint := reinstall
	if why.Hint != "" {
		hint = why.Hint
	}
	e := core.Errorf(core.ErrPluginRefused, "plugin manifest %s: %s", path, why.Message).WithHint("%s", hint)
	e.Cause = cause
	return e
}

func (m *Manifest) check() error {
	if m.Name == "" || len(m.SHA256) != 64 || !filepath.IsLocal(m.File) {
		return core.Invalid("", "name %q, file %q, sha256 %q: want a name, a path below the manifest's folder, and 64 hex digits", m.Name, m.File, m.SHA256)
	}
	if m.Protocol != plugins.ProtocolVersion {
		return core.Invalid("", "plugin protocol %d: want %d", m.Protocol, plugins.ProtocolVersion).
			WithHint("install a release of %s that fits this release of Trivium", m.Name)
	}
	for i := range m.Strategies {
		info := &m.Strategies[i]
		if info.Name == "" || !slices.Contains([]core.StrategyKind{core.Attention, core.Position, core.Merge}, info.Kind) {
			return core.Invalid("", "strategy %d is %q: want a name and a kind that is known", i, info.ID())
		}
		if err := canonicalDefaults(info); err != nil {
			return err
		}
		info.Plugin = m.Name
	}
	return nil
}

// canonicalDefaults gives the default values the types that JSON took away, and
// checks them like a caller's.
func canonicalDefaults(info *core.Info) error {
	given := make(core.Params, len(info.Parameters))
	for _, p := range info.Parameters {
		given[p.Name] = p.Default
	}
	defaults, err := info.Validate(given, 0)
	if err != nil {
		return err
	}
	for i := range info.Parameters {
		info.Parameters[i].Default = defaults[info.Parameters[i].Name]
	}
	return nil
}

// kinds are those of the strategies, without repeats.
func (m *Manifest) kinds() []core.StrategyKind {
	var kinds []core.StrategyKind
	for _, info := range m.Strategies {
		if !slices.Contains(kinds, info.Kind) {
			kinds = append(kinds, info.Kind)
		}
	}
	return kinds
}
