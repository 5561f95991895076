package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/shm"
)

// Host owns the plugin processes and the memory shared with them. It is safe
// for concurrent use.
type Host struct {
	options  Options
	runtime  *RuntimeDir
	pool     *shm.Pool
	services []*service
	refused  []PluginStatus
	launcher launcher

	mu       sync.RWMutex // closed, and that nothing is added to inFlight after
	closed   bool
	inFlight sync.WaitGroup // calls, until their memory is given back

	calls       atomic.Uint64 // also the id of the latest
	bytesCopied atomic.Int64
}

// Stats are figures since Open.
type Stats struct {
	Calls       uint64    `json:"calls"`
	BytesCopied int64     `json:"bytes_copied"` // of tensors, into and out of shared memory
	Memory      shm.Stats `json:"memory"`
}

// PluginStatus is one plugin process, running or not.
type PluginStatus struct {
	Name     string            `json:"name"`
	Kind     core.StrategyKind `json:"kind,omitempty"`
	PID      int               `json:"pid,omitempty"`
	State    State             `json:"state"`
	Restarts int               `json:"restarts"`
	Reason   string            `json:"reason,omitempty"` // why it was refused
	Confined bool              `json:"confined,omitempty"`
	Rights   string            `json:"rights,omitempty"` // of a confined plugin
}

// Open reads the manifests. It starts no process. The caller calls Close.
func Open(_ context.Context, o Options) (*Host, error) {
	h := &Host{options: o.withDefaults(), pool: o.Pool}
	if o.Reattach == nil {
		var err error
		if h.options.Reattach, err = reattached(os.Getenv(plugins.EnvReattach)); err != nil {
			return nil, err
		}
	}
	manifests, err := h.manifests()
	if err != nil {
		return nil, err
	}
	if h.runtime, err = openRuntimeDir(o.RuntimeDir); err != nil {
		return nil, err
	}
	if h.pool == nil {
		if h.pool, err = shm.NewPool(shm.Options{}); err != nil {
			return nil, errors.Join(core.AsError(err), h.runtime.Close())
		}
	}
	if err := h.findLauncher(manifests); err != nil {
		return nil, errors.Join(err, h.close())
	}
	for _, m := range manifests {
		for _, kind := range m.kinds() {
			h.services = append(h.services, newService(h, m, kind))
		}
	}
	return h, nil
}

// findLauncher takes the one that was named, or that the built-in plugin brings.
func (h *Host) findLauncher(manifests []*Manifest) error {
	if path := h.options.Launcher; path != "" {
		sum, err := Checksum(path)
		if err != nil {
			return core.Errorf(core.ErrPluginMissing, "launcher: %w", err)
		}
		h.launcher.path, h.launcher.sha256 = path, sum
		return nil
	}
	for _, m := range manifests {
		if m.trusted && m.Launcher != nil {
			h.launcher.path, h.launcher.sha256 = filepath.Join(m.dir, m.Launcher.File), m.Launcher.SHA256
			return nil
		}
	}
	return nil
}

func (h *Host) manifests() ([]*Manifest, error) {
	var manifests []*Manifest
	for _, path := range h.options.Manifests {
		m, err := ReadManifest(path)
		if err != nil {
			return nil, err
		}
		m.trusted = true
		manifests = append(manifests, m)
	}
	lock := &Lock{}
	if h.options.Lock != "" {
		var err error
		if lock, err = ReadLock(h.options.Lock); err != nil {
			return nil, err
		}
	}
	manifests = append(manifests, h.locked(lock)...)
	for _, dir := range h.options.Dirs {
		// The pattern is well-formed unless the directory's name is not; sorted.
		paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			return nil, core.Invalid("", "plugin directory %s: %s", dir, err)
		}
		for _, path := range paths {
			m, err := ReadManifest(path)
			if err == nil {
				err = h.admit(m, lock)
			}
			if err != nil {
				h.refuse(path, err)
				continue
			}
			if h.follows(m, lock) {
				m.follow = path
			}
			same := func(o *Manifest) bool { return !o.trusted && o.Name == m.Name && o.sha256 == m.sha256 }
			if !slices.ContainsFunc(manifests, same) { // as when a plugin of the lock is also in a wheel
				manifests = append(manifests, m)
			}
		}
	}
	return manifests, nil
}

// refuse goes on without a plugin that was found and cannot be used.
func (h *Host) refuse(path string, err error) {
	h.options.Log.WithFields(logrus.Fields{core.LogComponent: "host", core.LogPlugin: path}).Warn(err)
	h.refused = append(h.refused, PluginStatus{Name: path, State: StateRefused, Reason: err.Error()})
}

// Register adds every strategy of every plugin to a registry. A third-party
// strategy with a name that is taken is refused, and the others stay.
func (h *Host) Register(registry *core.Registry) error {
	for _, s := range h.services {
		for _, info := range s.infos {
			info, err := h.configured(info)
			if err != nil {
				return err
			}
			err = registry.Register(s.adapter(info))
			if err != nil && s.trusted {
				return err
			}
			if err != nil {
				h.refuse(s.plugin, err)
			}
		}
	}
	return nil
}

// configured is a strategy with the user's defaults in place of its own.
func (h *Host) configured(info core.Info) (core.Info, error) {
	given := h.options.Defaults[info.ID()]
	if len(given) == 0 {
		return info, nil
	}
	defaults, err := info.Validate(given, 0)
	if err != nil {
		return info, core.Invalid(info.ID(), "settings: %s", core.AsError(err).Message).WithHint("%s", core.AsError(err).Hint)
	}
	info.Parameters = slices.Clone(info.Parameters)
	for i, p := range info.Parameters {
		info.Parameters[i].Default = defaults[p.Name]
	}
	return info, nil
}

// Pool is where memory shared with the plugins comes from.
func (h *Host) Pool() *shm.Pool { return h.pool }

// Stats returns the current figures.
func (h *Host) Stats() Stats {
	return Stats{Calls: h.calls.Load(), BytesCopied: h.bytesCopied.Load(), Memory: h.pool.Stats()}
}

// Plugins lists the processes, and the plugins that were refused.
func (h *Host) Plugins() []PluginStatus {
	list := slices.Clone(h.refused)
	for _, s := range h.services {
		list = append(list, s.status())
	}
	return list
}

// Close ends the processes and returns when they are gone, or when ctx is done.
// Calls in flight fail. It may be repeated.
func (h *Host) Close(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- h.close() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return core.AsError(ctx.Err())
	}
}

// begin admits a call, which ends with inFlight.Done.
func (h *Host) begin() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return core.Errorf(core.ErrEngineClosed, "the plugin host is closed")
	}
	h.inFlight.Add(1)
	return nil
}

func (h *Host) close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	var group sync.WaitGroup
	for _, s := range h.services {
		for _, p := range s.processes() {
			group.Go(func() { p.Close() })
		}
	}
	group.Wait()
	h.inFlight.Wait()
	h.launcher.close()
	err := h.runtime.Close()
	if h.options.Pool == nil {
		err = errors.Join(err, h.pool.Close())
	}
	return err
}
