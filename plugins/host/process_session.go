package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/confine"
	"github.com/trivium-ml/trivium/plugins/lane"
	"github.com/trivium-ml/trivium/plugins/shm"
)

// gracePeriod is how long a process may take to end when asked.
const gracePeriod = 500 * time.Millisecond

// Session is one incarnation of a plugin process, from its start to its death.
type Session struct {
	// Conn makes calls. They fail with *core.Error of kind plugin_crashed,
	// deadline_exceeded or cancelled, or with the plugin's own status.
	Conn *grpc.ClientConn
	// Peer tells this incarnation of shared memory.
	Peer *shm.Peer
	// Lane is the short way for small calls.
	Lane *lane.Caller
	PID  int

	name      string
	onEnd     func() // nil: nobody wants to know
	log       *logrus.Entry
	client    *plugin.Client
	kill      func()      // client.Kill, once
	started   func() bool // ends the effect of the start's context; false if that came too late
	child     *child
	socketDir string
	scratch   string // "": none
	tail      *stderrTail

	served    atomic.Bool            // a call has succeeded
	condemned atomic.Pointer[string] // why we killed it; nil: we did not
	memory    int64                  // MiB that it may use; 0: any
	slots     chan struct{}          // held by calls
	waiting   atomic.Int64           // calls without a slot
	stopping  atomic.Bool
	done      chan struct{} // closed when the process has ended and err is known
	err       *core.Error
	cleaned   chan struct{} // closed when nothing of it is left
}

// Done is closed when the process has ended, for whatever reason. Memory that
// calls of this session were working on is no longer in use.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why, once Done is closed.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// startSession verifies, starts and connects to a plugin process. It gives up,
// and kills the process, when ctx is done.
func startSession(ctx context.Context, c Config) (*Session, error) {
	executable, err := c.executable()
	if err != nil {
		return nil, err
	}
	scratch, err := c.makeScratch()
	if err != nil {
		executable.Close()
		return nil, err
	}
	peer, sideChannel, err := shm.NewPair()
	if err != nil {
		executable.Close()
		os.RemoveAll(scratch)
		return nil, err
	}
	caller, laneEnd, err := lane.NewPair(plugins.MaxMessage)
	if err != nil {
		executable.Close()
		sideChannel.Close()
		peer.Close()
		os.RemoveAll(scratch)
		return nil, err
	}
	s := &Session{
		Peer:    peer,
		Lane:    caller,
		scratch: scratch,
		slots:   make(chan struct{}, maxCalls),
		name:    c.Name,
		log:     c.Log,
		onEnd:   c.Ended,
		tail:    new(stderrTail),
		done:    make(chan struct{}),
		cleaned: make(chan struct{}),
	}
	log := &pluginLog{entry: c.Log.WithField(core.LogPlugin, c.Name)}
	output := lineWriter(func(line string) { log.Debug(line) })
	s.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: plugins.ProtocolVersion, MagicCookieKey: plugins.CookieKey, MagicCookieValue: plugins.CookieValue,
		},
		VersionedPlugins: servedProtocols(),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		RunnerFunc: func(_ hclog.Logger, spec *exec.Cmd, socketDir string) (runner.Runner, error) {
			s.socketDir = socketDir
			var err error
			s.child, err = newChild(executable, sideChannel, laneEnd, c, append(c.Env[:len(c.Env):len(c.Env)], spec.Env...), scratch, socketDir)
			if err != nil { // a typed nil must not become a runner
				return nil, err
			}
			// Connecting has no limit of its own in go-plugin; a dead process ends it.
			s.started = context.AfterFunc(ctx, func() { _ = s.child.Kill(ctx) })
			return s.child, nil
		},
		StartTimeout:     2 * c.StartTimeout, // ctx ends first
		Stderr:           s.tail,
		SyncStdout:       output,
		SyncStderr:       output,
		Logger:           log,
		AutoMTLS:         !c.Plain,
		GRPCDialOptions:  []grpc.DialOption{grpc.WithChainUnaryInterceptor(s.unary), grpc.WithChainStreamInterceptor(s.stream)},
		SkipHostEnv:      true,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: c.RuntimeDir},
	})
	s.kill = sync.OnceFunc(s.client.Kill)
	err = s.connect()
	if s.child == nil { // go-plugin failed before it took them
		executable.Close()
		sideChannel.Close()
		laneEnd.Close()
	} else if !s.started() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, s.abort(ctx, c, err)
	}
	if c.Confine != nil {
		s.memory = int64(c.Confine.Rights.memory() >> 20)
	}
	go s.watch()
	if c.Attach == "" { // one in a debugger stands still as long as it likes
		go s.watchOver(c.Confine != nil)
	}
	return s, nil
}

// executable is a verified copy of what is started; nothing is when the process
// waits.
func (c *Config) executable() (*os.File, error) {
	if c.Attach != "" {
		return os.Open(os.DevNull)
	}
	return verifiedCopy(c.Path, c.SHA256, c.interpreter == nil)
}

// makeScratch makes the directory that a confined process may write to.
func (c *Config) makeScratch() (string, error) {
	if c.Confine == nil {
		return "", nil
	}
	dir, err := os.MkdirTemp(c.RuntimeDir, "scratch")
	if err != nil {
		return "", core.Errorf(core.ErrInternal, "no scratch directory for the plugin: %w", err)
	}
	return dir, nil
}

func (s *Session) removeDirs() {
	for _, dir := range []string{s.socketDir, s.scratch} {
		if dir != "" {
			os.RemoveAll(dir)
		}
	}
}

// servedProtocols are the versions that go-plugin lets a plugin choose from.
func servedProtocols() map[int]plugin.PluginSet {
	versions := make(map[int]plugin.PluginSet)
	for v := plugins.OldestProtocol; v <= plugins.ProtocolVersion; v++ {
		versions[v] = plugin.PluginSet{}
	}
	return versions
}

func (s *Session) connect() error {
	protocol, err := s.client.Client()
	if err != nil {
		return err
	}
	client, ok := protocol.(*plugin.GRPCClient)
	if !ok {
		return fmt.Errorf("plugin speaks %s: want gRPC", s.client.Protocol())
	}
	s.Conn, s.PID = client.Conn, s.child.pid()
	return nil
}

// abort cleans up after a start that failed and says why it did.
func (s *Session) abort(ctx context.Context, c Config, cause error) *core.Error {
	ended := s.settled()
	s.kill()
	s.Peer.Close()
	s.Lane.Close()
	s.removeDirs()
	var start *os.PathError
	switch {
	case errors.As(cause, &start) && start.Op == "fork/exec":
		return core.Errorf(core.ErrPluginRefused, "plugin %s cannot be executed: %w", s.name, start.Err).
			WithHint("it was built for another system, or its dynamic loader is missing: build it for this one")
	case ended && c.Confine != nil && s.child.exitStatus() == confine.RefusedStatus:
		return core.Errorf(core.ErrPluginRefused, "plugin %s cannot be confined%s", s.name, s.lastPrinted()).
			WithHint("run trivium plugin doctor, which says what this kernel offers")
	case ended:
		return s.crashed("ended while it started (%s)", s.child.exitStatus())
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return core.Errorf(core.ErrDeadlineExceeded, "plugin %s did not start within %v%s", s.name, c.StartTimeout, s.lastPrinted())
	case ctx.Err() != nil:
		return core.Errorf(core.ErrEngineClosed, "plugin %s was closed while it started", s.name)
	}
	return core.Errorf(core.ErrPluginRefused, "plugin %s did not start: %w%s", s.name, cause, s.lastPrinted()).
		WithHint("rebuild it against this version of Trivium, whose plugin protocol is %d", plugins.ProtocolVersion)
}

// settled reports whether the process has ended by itself, which is known a
// moment after its pipes have closed.
func (s *Session) settled() bool {
	if s.child == nil || s.child.pid() == 0 {
		return false
	}
	select {
	case <-s.child.exited:
		s.child.drained()
		return s.child.endedByItself()
	case <-time.After(drainTime):
		return false
	}
}

// watch turns the death of the process into the end of the session: calls in
// flight fail, then the reason is known, then everything is cleaned up.
func (s *Session) watch() {
	<-s.child.exited
	s.Conn.Close()
	s.child.drained()
	s.err = s.crashed("crashed (%s)", s.child.exitStatus())
	if s.stopping.Load() {
		s.err = core.Errorf(core.ErrEngineClosed, "plugin %s was stopped", s.name)
		s.err.Plugin = s.name
	}
	s.Peer.Close()
	close(s.done)
	s.Lane.Close() // after done, so that a call that loses its lane knows why
	s.kill()
	s.removeDirs()
	if s.onEnd != nil {
		s.onEnd()
	}
	close(s.cleaned)
}

func (s *Session) crashed(format string, args ...any) *core.Error {
	message := fmt.Sprintf("plugin %s (pid %d) ", s.name, s.child.pid()) + fmt.Sprintf(format, args...) + s.lastPrinted()
	e := &core.Error{Kind: core.ErrPluginCrashed, Message: message, Plugin: s.name}
	if reason := s.condemned.Load(); reason != nil {
		e.Message = fmt.Sprintf("plugin %s (pid %d) was %s%s", s.name, s.child.pid(), *reason, s.lastPrinted())
		return e.WithHint("this is a mistake in the plugin; the next call starts it again")
	}
	if s.memory > 0 && outOfMemory.MatchString(s.tail.String()) {
		return e.WithHint("it may use %d MiB of memory: its manifest can ask for more (rights.memory_mib)", s.memory)
	}
	if !s.child.endedByItself() {
		return e.WithHint("it was ended, since it did not let go of a cancelled call or said that it cannot go on; the next call starts it again")
	}
	if s.child.exitStatus() == killedStatus {
		return e.WithHint("somebody killed it, perhaps the system because memory ran out; the next call starts it again")
	}
	return e.WithHint("the next call starts it again")
}

// outOfMemory is what runtimes print when the limit holds.
var outOfMemory = regexp.MustCompile(`(?i)out of memory|cannot allocate memory|MemoryError|bad_alloc`)

// lastPrinted is the end of the process's output, for error messages.
func (s *Session) lastPrinted() string {
	tail := s.tail.String()
	if tail == "" {
		return ""
	}
	return "; it last printed:\n" + tail
}

// replace ends a process that said that it can serve no more, so that the next
// call starts another.
func (s *Session) replace() {
	_ = s.child.Kill(context.Background()) // fails only when the process has ended already
	<-s.done
}

// stop asks the process to end, insists after the grace period, and returns
// when it is gone and cleaned up.
func (s *Session) stop() {
	s.stopping.Store(true)
	insist := time.AfterFunc(gracePeriod, func() { _ = s.child.Kill(context.Background()) })
	defer insist.Stop()
	go s.kill()
	<-s.cleaned
}
