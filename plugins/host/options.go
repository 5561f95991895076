package host

import (
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/shm"
)

const (
	defaultCallTimeout = 30 * time.Minute
	defaultCancelGrace = 2 * time.Second
)

// Options configure a Host; the zero value has no plugins.
type Options struct {
	// Manifests are paths of manifests that must be usable. Their plugins are
	// part of this installation: they are trusted, and not confined.
	Manifests []string
	// Dirs are searched for manifests, *.json, of third-party plugins, which are
	// confined. One that is not usable is logged, and listed by Plugins.
	Dirs []string
	// Lock is the path of the lock file, whose plugins are in Store; "": none.
	Lock, Store string
	// Locked refuses third-party plugins that are not in the lock.
	Locked bool
	// Grant gives plugins of Dirs the rights that they ask for. Otherwise only the
	// lock does.
	Grant bool
	// Unconfined lets third-party plugins do what the host may.
	Unconfined bool
	// Launcher is the program that confines plugins; "": the built-in plugin's.
	Launcher string
	// Python runs plugins written in Python.
	Python Python
	// Reattach are sockets at which plugins wait that were started by hand, by the
	// plugin's name; nil: what TRIVIUM_REATTACH says. They are not confined.
	Reattach map[string]string
	// Defaults replace those of parameters, by dotted identifier.
	Defaults map[string]core.Params
	// Log gets what the host and its plugins log; nil: warnings only.
	Log *logrus.Logger
	// RuntimeDir is where the directory for sockets is made; "": where the
	// system keeps such things.
	RuntimeDir string
	// CallTimeout bounds a call whose context has no deadline; 0: 30 minutes.
	CallTimeout time.Duration
	// CancelGrace is how long a plugin may take to let go of a call that was
	// cancelled before it is killed; 0: 2 s.
	CancelGrace time.Duration
	// Pool is where shared memory comes from; nil: one of its own.
	Pool *shm.Pool
	// DeviceMemory is what plugins may see of devices; nil: nothing.
	DeviceMemory *DeviceMemory
	// AttentionEnded is called when a process of attention strategies has ended,
	// before another is started: work that it had begun on a device is void.
	AttentionEnded func()
	// Env are further variables of plugin processes, as NAME=value.
	Env []string
	// Copy copies large pieces of memory of equal length; nil: Go's copy, by
	// several goroutines.
	Copy func(to, from []byte)
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = core.Quiet()
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = defaultCallTimeout
	}
	if o.CancelGrace == 0 {
		o.CancelGrace = defaultCancelGrace
	}
	if o.Copy == nil {
		o.Copy = parallelCopy
	}
	return o
}

// openRuntimeDir makes the directory for sockets in base, or where the
// environment says.
func openRuntimeDir(base string) (*RuntimeDir, error) {
	if base == "" {
		return OpenRuntimeDir(os.Getenv)
	}
	d, err := OpenRuntimeDir(func(string) string { return base })
	if err != nil {
		return nil, err
	}
	if filepath.Dir(d.Path) != filepath.Clean(base) {
		d.Close()
		return nil, core.Invalid("", "runtime directory %s: want one that is writable, with a path of at most %d bytes", base, maxRuntimeBase)
	}
	return d, nil
}
