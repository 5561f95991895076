package host

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
)

// Manifest lies beside a plugin's binary and says what is in it, so that its
// strategies can be listed without starting it, and only the binary that its
// author meant is started.
type Manifest struct {
	Name       string      `json:"name"`
	Version    string      `json:"version,omitempty"`
	File       string      `json:"file,omitempty"`   // the binary, relative to the manifest
	SHA256     string      `json:"sha256,omitempty"` // of the binary, in hex; see Checksum
	Protocol   int         `json:"protocol"`
	Strategies []core.Info `json:"strategies"` // what the binary prints for --describe

	// Platforms are the binaries of a plugin that was packed for several, by
	// name such as "linux-amd64", instead of File and SHA256.
	Platforms map[string]Binary `json:"platforms,omitempty"`
	// Interpreter runs the file, which is no binary then: "python".
	Interpreter string `json:"interpreter,omitempty"`
	// Transport is "plain" for a plugin without mutual TLS on its socket, which
	// lies in a directory of this user alone.
	Transport string `json:"transport,omitempty"`
	// Rights are what it asks for beyond computing.
	Rights Rights `json:"rights,omitzero"`
	// Reload: the plugin is being written. A host that was given its folder reads
	// the manifest again when it changes.
	Reload bool `json:"reload,omitempty"`
	// Launcher starts confined plugins; only the built-in plugin brings one.
	Launcher *Binary `json:"launcher,omitempty"`

	path    string // of the binary
	dir     string
	sha256  string // of the manifest itself
	follow  string // path of the manifest, if it is read again; else ""
	trusted bool   // part of this installation: not confined
}

// Binary is a file beside a manifest, and what it must be.
type Binary struct {
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
}

// Platform is the name of the system that this host runs on.
func Platform() string { return runtime.GOOS + "-" + runtime.GOARCH }

const (
	reinstall = "reinstall the package that ships it, or name the right path"

	interpreterPython = "python"
	transportPlain    = "plain"

	maxManifest = 4 << 20
)

// pluginName is what a plugin may be called: it is in file names, logs and messages.
var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ReadManifest reads and checks a manifest. The binary is looked at when it is
// started.
func ReadManifest(path string) (*Manifest, error) {
	text, err := readBounded(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, core.Errorf(core.ErrPluginMissing, "plugin manifest %s does not exist", path).
			WithHint(reinstall)
	}
	if err != nil {
		return nil, core.Errorf(core.ErrPluginRefused, "plugin manifest cannot be read: %w", err)
	}
	m, err := parseManifest(text)
	if err != nil {
		return nil, refusedManifest(path, err)
	}
	m.dir = filepath.Dir(path)
	m.path = filepath.Join(m.dir, m.File)
	return m, nil
}

// readBounded reads a file that is no longer than what such a file ever is.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return text, err
}

// parseManifest checks everything but the files that it names.
func parseManifest(text []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, err
	}
	if err := m.choosePlatform(); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	m.sha256 = hex.EncodeToString(sum[:])
	return m, nil
}

// choosePlatform takes the binary for this system.
func (m *Manifest) choosePlatform() error {
	if len(m.Platforms) == 0 {
		return nil
	}
	for platform, binary := range m.Platforms {
		if err := binary.check(); err != nil {
			return core.Invalid("", "platform %q: %s", platform, err)
		}
	}
	binary, ok := m.Platforms[Platform()]
	if !ok {
		return core.Invalid("", "it has no binary for %s: only for %v", Platform(), slices.Sorted(maps.Keys(m.Platforms))).
			WithHint("ask its author for one, or build it here with trivium plugin pack")
	}
	m.File, m.SHA256 = binary.File, binary.SHA256
	return nil
}

func (b Binary) check() error {
	if !hexDigits.MatchString(b.SHA256) || !filepath.IsLocal(b.File) {
		return fmt.Errorf("file %q, sha256 %q: want a path below the manifest's folder, and 64 hex digits", b.File, b.SHA256)
	}
	return nil
}

var hexDigits = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// binaries are its files by platform.
func (m *Manifest) binaries() map[string]string {
	sums := map[string]string{Platform(): strings.ToLower(m.SHA256)}
	for platform, binary := range m.Platforms {
		sums[platform] = strings.ToLower(binary.SHA256)
	}
	return sums
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
	if !pluginName.MatchString(m.Name) {
		return core.Invalid("", "name %q: want letters, digits, dots, dashes and underscores, at most 64", m.Name)
	}
	if err := (Binary{m.File, m.SHA256}).check(); err != nil {
		return core.Invalid("", "%s", err)
	}
	if m.Launcher != nil {
		if err := m.Launcher.check(); err != nil {
			return core.Invalid("", "launcher: %s", err)
		}
	}
	if m.Protocol < plugins.OldestProtocol || m.Protocol > plugins.ProtocolVersion {
		return core.Invalid("", "plugin protocol %d: want %d to %d", m.Protocol, plugins.OldestProtocol, plugins.ProtocolVersion).
			WithHint("install a release of %s that fits this release of Trivium", m.Name)
	}
	if m.Interpreter != "" && m.Interpreter != interpreterPython {
		return core.Invalid("", "interpreter %q: want %q, or none", m.Interpreter, interpreterPython)
	}
	if m.Transport != "" && m.Transport != transportPlain {
		return core.Invalid("", "transport %q: want %q, or none", m.Transport, transportPlain)
	}
	if err := m.Rights.check(); err != nil {
		return err
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
