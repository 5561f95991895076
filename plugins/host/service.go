package host

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// maxScratchFile bounds a file that a confined plugin writes.
const maxScratchFile = 1 << 30

// confinedGrace is the longest grace of a confined plugin.
const confinedGrace = 400 * time.Millisecond

// describeTime bounds the question that a new process is asked.
const describeTime = 10 * time.Second

// service is the strategies of one kind of one plugin: one process.
type service struct {
	host    *Host
	plugin  string
	trusted bool
	rights  Rights
	kind    core.StrategyKind
	infos   []core.Info
	source  *reloading // nil: the binary stays the same

	mu       sync.Mutex
	process  *Process         // the next call's
	manifest string           // hash of the manifest that it is of
	users    map[*Process]int // calls on each
	retired  []*Process       // of earlier binaries, which end their last calls

	verifying sync.Mutex
	verified  atomic.Pointer[Session]
	refusal   atomic.Pointer[core.Error] // the binary does not have what its manifest says
}

func newService(h *Host, m *Manifest, kind core.StrategyKind) *service {
	s := &service{host: h, plugin: m.Name, kind: kind, trusted: m.trusted, rights: m.Rights, manifest: m.sha256, users: map[*Process]int{}}
	if m.follow != "" {
		s.source = &reloading{path: m.follow}
	}
	for _, info := range m.Strategies {
		if info.Kind == kind {
			s.infos = append(s.infos, info)
		}
	}
	c := Config{
		Name: m.Name, Path: m.path, SHA256: m.SHA256, RuntimeDir: h.runtime.Path, Plain: m.Transport == transportPlain,
		Env: append(append(PluginEnv(os.Environ()), h.options.Env...), plugins.EnvKind+"="+string(kind)),
		Log: h.options.Log.WithField(core.LogComponent, "plugin."+string(kind)),
	}
	if kind == core.Attention {
		c.Ended = h.options.AttentionEnded
	}
	if c.Attach = h.options.Reattach[m.Name]; c.Attach != "" {
		h.options.Log.WithField(core.LogPlugin, m.Name).Warnf("attached at %s: neither verified nor confined", c.Attach)
	} else if err := s.complete(&c, m); err != nil {
		refusal := core.AsError(err)
		refusal.Plugin = m.Name
		s.refusal.Store(refusal)
	}
	s.process = NewProcess(c)
	return s
}

// complete adds what a third-party plugin needs.
func (s *service) complete(c *Config, m *Manifest) (err error) {
	if m.Interpreter != "" {
		if c.interpreter, err = s.host.options.Python.interpreter(); err != nil {
			return err
		}
	}
	if !s.confined() {
		return nil
	}
	launcher, err := s.host.launcher.open()
	if err != nil {
		return err
	}
	c.Confine = &Confinement{Launcher: launcher, Rights: m.Rights}
	if s.kind != core.Merge { // whose outputs are files as large as a model
		c.Confine.FileSize = maxScratchFile
	}
	return nil
}

// grace is how long a plugin may take to let go of a call that was cancelled. A
// third party's gets less: the caller waits for it.
func (s *service) grace() time.Duration {
	if s.confined() {
		return min(s.host.options.CancelGrace, confinedGrace)
	}
	return s.host.options.CancelGrace
}

func (s *service) confined() bool { return !s.trusted && !s.host.options.Unconfined }

// session is the running process p, which serves what its manifest says.
func (s *service) session(ctx context.Context, p *Process) (*Session, error) {
	if refusal := s.refusal.Load(); refusal != nil {
		return nil, refusal
	}
	session, err := p.Conn(ctx)
	if refusal := s.refusal.Load(); refusal != nil {
		return nil, refusal
	}
	if err != nil {
		return nil, err
	}
	if session == s.verified.Load() {
		return session, nil
	}
	return session, s.verify(session, p)
}

// verify compares what the process describes with its manifest. A mismatch is
// final: the same binary would describe the same again.
func (s *service) verify(session *Session, p *Process) error {
	s.verifying.Lock()
	defer s.verifying.Unlock()
	if session == s.verified.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), describeTime)
	defer cancel()
	reply, err := pb.NewCatalogServiceClient(session.Conn).Describe(ctx, &pb.DescribeRequest{}, callOptions...)
	if err != nil {
		return s.blame(err)
	}
	// The breaker of restarts counts what users' calls achieved.
	session.served.Store(false)
	if difference := s.difference(reply.GetStrategies()); difference != "" {
		refusal := core.Errorf(core.ErrPluginRefused, "plugin %s: %s", s.plugin, difference).
			WithHint("write its manifest anew, with what the binary prints for --describe")
		s.keep(p, func() { s.refusal.Store(refusal) })
		go p.Close()
		return refusal
	}
	s.keep(p, func() { s.verified.Store(session) })
	return nil
}

// keep notes what was found about a process, unless it was exchanged meanwhile.
func (s *service) keep(p *Process, note func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p == s.process {
		note()
	}
}

// status is the process as Plugins lists it.
func (s *service) status() PluginStatus {
	p := s.current().Stats()
	status := PluginStatus{Name: p.Name, Kind: s.kind, PID: p.PID, State: p.State, Restarts: p.Restarts, Confined: s.confined()}
	if status.Confined {
		status.Rights = s.rights.String()
	}
	if refusal := s.refusal.Load(); refusal != nil {
		status.State, status.Reason = StateRefused, refusal.Error()
	}
	return status
}

// difference says how the strategies of the process differ from the manifest's.
func (s *service) difference(served []*pb.StrategyInfo) string {
	byName := make(map[string]*pb.StrategyInfo, len(served))
	for _, m := range served {
		byName[m.GetName()] = m
	}
	for _, info := range s.infos {
		want, err := wire.EncodeInfo(info)
		if err != nil {
			return err.Error()
		}
		if got := byName[info.Name]; got == nil || !proto.Equal(known(got), want) {
			return "it does not describe " + info.ID() + " as its manifest does"
		}
		delete(byName, info.Name)
	}
	for name := range byName {
		return "it serves " + string(s.kind) + "." + name + ", which its manifest does not list"
	}
	return ""
}

// known leaves out what a newer plugin says in fields that this host does not know.
func known(m *pb.StrategyInfo) proto.Message {
	text, err := proto.Marshal(m)
	if err != nil {
		return m
	}
	stripped := &pb.StrategyInfo{}
	if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, stripped) != nil {
		return m
	}
	return stripped
}

// adapter is the strategy as the engine sees it.
func (s *service) adapter(info core.Info) core.Strategy {
	base := strategy{service: s, info: info}
	switch {
	case info.Kind == core.Position:
		return &position{base}
	case info.Kind == core.Merge && info.Capabilities.Weights:
		return &weigher{merge{base}}
	case info.Kind == core.Merge:
		return &merge{base}
	case info.Capabilities.Attends:
		return &attender{attention{base}}
	}
	return &attention{base}
}

// strategy is what adapters have in common.
type strategy struct {
	service *service
	info    core.Info
}

func (s *strategy) Info() core.Info { return s.info }
