package host

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
)

const defaultStartTimeout = 10 * time.Second

// Config describes a plugin process.
type Config struct {
	Name       string        // in errors and logs
	Path       string        // executable
	SHA256     string        // of the executable, in hex; see Checksum
	Args       []string      // without the program's name
	Env        []string      // the whole environment; see PluginEnv
	RuntimeDir string        // for its sockets; see OpenRuntimeDir
	Log        *logrus.Entry // nil: warnings go to standard error
	// StartTimeout bounds the start; 0 means 10 s.
	StartTimeout time.Duration
	// Confine restricts the process; nil: it may do what the host may.
	Confine *Confinement
	// Attach is the socket at which the process waits, started by somebody else;
	// "": it is started.
	Attach string
	// Ended is called when a process has ended, before another is started.
	Ended func()
	// Plain: no mutual TLS on the socket.
	Plain bool

	interpreter *interpreter // runs the file; nil: it is a binary
}

// State is what a Process is doing.
type State string

// The states of a Process.
const (
	StateIdle     State = "idle" // not started yet
	StateStarting State = "starting"
	StateRunning  State = "running"
	StateCrashed  State = "crashed" // the next call starts it again
	StateRefused  State = "refused" // it crashed too often, or could not be started
	StateClosed   State = "closed"
)

// ProcessStats is a snapshot of a Process.
type ProcessStats struct {
	Name     string
	PID      int // 0 unless running
	State    State
	Restarts int
}

// Process supervises one plugin process: it starts with the first call and is
// started again by the first call after a crash. It is safe for concurrent use.
type Process struct {
	config Config
	ctx    context.Context // done when closed; bounds starts, which no caller owns
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	session  *Session // the running one, or one whose death nobody has noticed
	last     *Session // the latest, until everything of it is cleaned up
	starting *attempt
	sessions int
	failure  *core.Error // why there is no running session; nil if there is one or none was asked for
	breaker  breaker
}

// attempt is a start that several callers may wait for.
type attempt struct {
	done    chan struct{}
	session *Session
	err     error
}

// NewProcess starts nothing yet. The caller calls Close.
func NewProcess(c Config) *Process {
	if c.StartTimeout == 0 {
		c.StartTimeout = defaultStartTimeout
	}
	if c.Log == nil {
		c.Log = logrus.NewEntry(core.Quiet())
	}
	p := &Process{config: c}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Conn returns the running session, starting the process if need be. Calls that
// wait for the same start share it; ctx bounds only the caller's wait.
func (p *Process) Conn(ctx context.Context) (*Session, error) {
	a, err := p.attempt()
	if err != nil {
		return nil, err
	}
	select {
	case <-a.done:
		return a.session, a.err
	case <-ctx.Done():
		return nil, core.AsError(context.Cause(ctx))
	}
}

func (p *Process) attempt() (*attempt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, p.errorf(core.ErrEngineClosed, "plugin %s is closed", p.config.Name)
	}
	if p.starting != nil {
		return p.starting, nil
	}
	if p.session != nil && p.session.Err() == nil {
		return &attempt{done: closedChannel(), session: p.session}, nil
	}
	if p.session != nil {
		p.fail(p.session.err, p.session.served.Load())
	}
	if wait := p.breaker.wait(time.Now()); wait > 0 {
		return nil, p.errorf(core.ErrPluginRefused, "plugin %s crashed %d times in %v without completing a call: %s",
			p.config.Name, breakerCrashes, breakerWindow, p.failure.Message).
			WithHint("fix the cause; it may start again in %v", wait.Round(time.Second))
	}
	a := &attempt{done: make(chan struct{})}
	p.starting = a
	go p.start(a, p.last)
	return a, nil
}

func (p *Process) start(a *attempt, last *Session) {
	if last != nil {
		<-last.cleaned
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(p.ctx, p.config.StartTimeout)
	defer cancel()
	session, err := startSession(ctx, p.config)
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(a.done)
	p.starting = nil
	if err != nil {
		failure := core.AsError(err)
		failure.Plugin = p.config.Name
		p.fail(failure, false)
		a.err = failure
		return
	}
	a.session, p.session, p.last, p.failure = session, session, session, nil
	p.sessions++
	p.config.Log.WithFields(logrus.Fields{
		core.LogPlugin: p.config.Name, core.LogPID: session.PID, core.LogElapsed: time.Since(began).Milliseconds(),
	}).Debug("plugin process started")
	go p.report(session)
}

// report logs the end of a session that nobody asked to end.
func (p *Process) report(s *Session) {
	<-s.done
	if s.err.Kind == core.ErrPluginCrashed {
		p.config.Log.WithFields(logrus.Fields{core.LogPlugin: p.config.Name, core.LogPID: s.PID}).Warn(s.err.Message)
	}
}

// fail records why there is no session. The caller holds mu.
func (p *Process) fail(failure *core.Error, served bool) {
	p.session, p.failure = nil, failure
	if failure.Kind == core.ErrPluginCrashed {
		p.breaker.crashed(time.Now(), served)
	}
}

// Stats returns the current figures.
func (p *Process) Stats() ProcessStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := ProcessStats{Name: p.config.Name, State: p.state(), Restarts: max(0, p.sessions-1)}
	if s.State == StateRunning {
		s.PID = p.session.PID
	}
	return s
}

func (p *Process) state() State {
	switch {
	case p.closed:
		return StateClosed
	case p.starting != nil:
		return StateStarting
	case p.session != nil && p.session.Err() == nil:
		return StateRunning
	case p.session != nil:
		return StateCrashed
	case p.failure == nil:
		return StateIdle
	case p.failure.Kind == core.ErrPluginCrashed && p.breaker.wait(time.Now()) == 0:
		return StateCrashed
	default:
		return StateRefused
	}
}

// Close ends the process, by force if it does not end in half a second, and
// returns when it is gone. Calls in flight fail. It may be repeated.
func (p *Process) Close() error {
	p.mu.Lock()
	p.closed = true
	p.cancel()
	starting, last := p.starting, p.last
	p.mu.Unlock()
	if starting != nil {
		<-starting.done
		last = starting.session
	}
	if last != nil {
		last.stop()
	}
	return nil
}

func (p *Process) errorf(kind core.ErrorKind, format string, args ...any) *core.Error {
	e := core.Errorf(kind, format, args...)
	e.Plugin = p.config.Name
	return e
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
