package host

import (
	"encoding/json"
	"os"
	"slices"
	"sync"

	"github.com/trivium-ml/trivium/core"
)

// reloading follows a manifest that `trivium plugin dev` writes anew at every
// save: the next call goes to the binary that it then names. Calls that run end
// on the one that they began with.
type reloading struct {
	path string

	mu   sync.Mutex
	seen os.FileInfo // of the manifest that was read last
}

// follows says whether a plugin may be exchanged while the host runs: one that
// its author develops, and that nobody pinned.
func (h *Host) follows(m *Manifest, lock *Lock) bool {
	_, pinned := lock.Plugins[m.Name]
	return m.Reload && !pinned && !h.options.Locked
}

// reload exchanges the process if the manifest has changed.
func (s *service) reload() error {
	if s.source == nil {
		return nil
	}
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	now, err := os.Stat(s.source.path)
	if err != nil {
		return core.Errorf(core.ErrPluginMissing, "plugin manifest: %w", err).WithHint("trivium plugin dev writes it")
	}
	if seen := s.source.seen; seen != nil && os.SameFile(seen, now) && seen.ModTime().Equal(now.ModTime()) && seen.Size() == now.Size() {
		return nil
	}
	m, err := ReadManifest(s.source.path)
	if err != nil {
		return err
	}
	if m.sha256 == s.manifest {
		s.source.seen = now
		return nil
	}
	if why := s.exchangeable(m); why != "" {
		return core.Errorf(core.ErrPluginRefused, "plugin %s was built anew, and %s", s.plugin, why).WithHint("open the engine anew")
	}
	s.exchange(m)
	s.source.seen = now
	s.host.options.Log.WithField(core.LogPlugin, s.plugin).Debug("built anew: the next call starts it")
	return nil
}

// exchangeable says what of a new manifest callers may have relied on, "" for nothing.
func (s *service) exchangeable(m *Manifest) string {
	var infos []core.Info
	for _, info := range m.Strategies {
		if info.Kind == s.kind {
			infos = append(infos, info)
		}
	}
	before, err := json.Marshal(s.infos)
	if err != nil {
		return err.Error()
	}
	after, err := json.Marshal(infos)
	if err != nil {
		return err.Error()
	}
	switch {
	case m.Name != s.plugin:
		return "has another name"
	case !slices.Equal(before, after):
		return "describes other strategies or parameters"
	case !m.Rights.equal(s.rights):
		return "asks for other rights"
	}
	return ""
}

// exchange makes the next call start another binary.
func (s *service) exchange(m *Manifest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.process.config
	c.Path, c.SHA256 = m.path, m.SHA256
	old := s.process
	s.process, s.manifest = NewProcess(c), m.sha256
	s.refusal.Store(nil)
	s.verified.Store(nil)
	if s.users[old] == 0 {
		go old.Close()
		return
	}
	s.retired = append(s.retired, old)
}

// hold is the process that a call goes to. It lives until letGo.
func (s *service) hold() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[s.process]++
	return s.process
}

func (s *service) letGo(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[p]--; s.users[p] > 0 {
		return
	}
	delete(s.users, p)
	if i := slices.Index(s.retired, p); i >= 0 {
		s.retired = slices.Delete(s.retired, i, i+1)
		go p.Close()
	}
}

// current is the process that the next call goes to.
func (s *service) current() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// processes are the current one, and those that still end calls.
func (s *service) processes() []*Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Process{s.process}, s.retired...)
}
