package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/confine"
)

// drainTime is how long the output of a dead process is waited for. Only
// processes that it left behind can keep its pipes open.
const drainTime = 50 * time.Millisecond

const (
	exitedWell   = "exit status 0"
	killedStatus = "signal: killed"
)

var errStopped = errors.New("stopped before it started")

// child is one plugin process. In contrast to go-plugin's own runner it notices
// an exit by the process, not by its pipes, which helpers it started may hold;
// it is a process group of its own, so that those end with it and Ctrl-C in a
// terminal does not reach it; and it does not share the host's standard input.
type child struct {
	sockets        string // where its socket must be
	cmd            *exec.Cmd
	inherited      []*os.File // ours to close once the process has them
	stdout, stderr *pipeReader
	exited         chan struct{}

	waitsAt     string // socket of a process that was started by hand; "": we start it
	attachedPID int
	pidfd       int

	mu      sync.Mutex
	running bool // the process id is ours
	killed  bool // by us
	status  string
}

var _ runner.Runner = (*child)(nil)

// newChild prepares a process that runs executable as config.Path says. It takes
// over the three files, whatever it returns.
func newChild(executable, sideChannel, lane *os.File, config Config, env []string, scratch, sockets string) (*child, error) {
	c := &child{exited: make(chan struct{}), sockets: sockets, inherited: []*os.File{executable, sideChannel, lane}}
	handshake, handshakeWrite, err := os.Pipe()
	if err != nil {
		c.closeInherited()
		return nil, err
	}
	c.stdout = newPipeReader(handshake)
	c.inherited = append(c.inherited, handshakeWrite)
	stderr, stderrWrite, err := os.Pipe()
	if err != nil {
		c.closeAll()
		return nil, err
	}
	c.stderr = newPipeReader(stderr)
	c.inherited = append(c.inherited, stderrWrite)
	env = append(env[:len(env):len(env)], plugins.EnvHostPID+"="+strconv.Itoa(os.Getpid()), plugins.EnvPath+"="+config.Path, plugins.EnvLane+"=1")
	c.cmd = &exec.Cmd{
		Env:         env,
		Stdout:      stderrWrite,
		Stderr:      stderrWrite,
		ExtraFiles:  []*os.File{plugins.SideChannelFD - 3: sideChannel, plugins.HandshakeFD - 3: handshakeWrite, plugins.LaneFD - 3: lane},
		SysProcAttr: &unix.SysProcAttr{Setpgid: true},
	}
	if config.Attach != "" {
		c.waitsAt, c.cmd.Args = config.Attach, []string{config.Path}
		return c, nil
	}
	if err := c.program(executable, config, scratch); err != nil {
		c.closeAll()
		return nil, err
	}
	return c, nil
}

// program sets what is executed: the binary, or the interpreter of the program,
// by itself or through the launcher that confines it.
func (c *child) program(executable *os.File, config Config, scratch string) error {
	args := append([]string{config.Path}, config.Args...)
	if i := config.interpreter; i != nil {
		args = slices.Concat([]string{i.path}, i.args, config.Args)
	}
	run := executable
	if config.Confine != nil {
		launched, err := confine.Args(config.Confine.policy(config.interpreter, scratch, c.sockets), args)
		if err != nil {
			return err
		}
		args, run = launched, config.Confine.Launcher
		c.cmd.Dir = scratch
		c.cmd.Env = append(c.cmd.Env, "TMPDIR="+scratch)
	}
	c.cmd.Args = args
	if config.Confine != nil || config.interpreter != nil {
		c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, executable) // plugins.ProgramFD
	}
	if config.Confine == nil && config.interpreter != nil {
		c.cmd.Path = config.interpreter.path
		return nil
	}
	fd, err := c.fdOutOfReach(run)
	if err != nil {
		return err
	}
	c.cmd.Path = fmt.Sprintf("/proc/self/fd/%d", fd)
	return nil
}

// fdOutOfReach duplicates f to a number that starting a process leaves alone:
// between fork and exec, descriptors are moved to the lowest numbers and to
// those just above the highest one passed.
func (c *child) fdOutOfReach(f *os.File) (int, error) {
	highest := 16
	for _, passed := range c.inherited {
		highest = max(highest, int(passed.Fd()))
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, highest+16)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	c.inherited = append(c.inherited, os.NewFile(uintptr(fd), f.Name()))
	return fd, nil
}

func (c *child) Start(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := errStopped
	switch {
	case c.killed:
	case c.waitsAt != "":
		err = c.attach()
	default:
		err = c.cmd.Start()
	}
	if err != nil {
		c.closeAll()
		close(c.exited)
		return err
	}
	c.closeInherited()
	c.running = true
	if c.waitsAt != "" {
		go c.awaitAttached()
		return nil
	}
	go c.reap()
	return nil
}

// reap ends when the process has: it kills what is left of the group while the
// group's id is still taken, collects the status, and bounds the output.
func (c *child) reap() {
	pid := c.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	c.mu.Lock()
	_ = unix.Kill(-pid, unix.SIGKILL) // fails when there is no helper left
	err := c.cmd.Wait()
	c.running = false
	c.status = exitedWell
	if err != nil {
		c.status = err.Error()
	}
	c.mu.Unlock()
	c.stdout.expire()
	c.stderr.expire()
	close(c.exited)
}

// Kill ends the whole process group at once, or keeps it from starting. It may
// be repeated.
func (c *child) Kill(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	if !c.running {
		return nil
	}
	if c.waitsAt != "" {
		return unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	}
	return unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL)
}

// Wait returns when the process has ended and go-plugin has read its output.
func (c *child) Wait(context.Context) error {
	<-c.exited
	c.stdout.Close()
	c.stderr.Close()
	if status := c.exitStatus(); status != exitedWell {
		return errors.New(status)
	}
	return nil
}

// drained waits until the output of the ended process has been read.
func (c *child) drained() {
	select {
	case <-c.stderr.ended:
	case <-time.After(2 * drainTime):
	}
}

// exitStatus says how the process ended, once it has.
func (c *child) exitStatus() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// endedByItself reports whether the process has ended, and not because Kill was called.
func (c *child) endedByItself() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status != "" && !(c.killed && c.status == killedStatus)
}

func (c *child) pid() int {
	if c.waitsAt != "" {
		return c.attachedPID
	}
	if c.cmd.Process == nil {
		return 0
	}
	return c.cmd.Process.Pid
}

func (c *child) Stdout() io.ReadCloser { return c.stdout }
func (c *child) Stderr() io.ReadCloser { return c.stderr }
func (c *child) Name() string          { return c.cmd.Args[0] }

func (c *child) ID() string {
	if c.pid() == 0 {
		return ""
	}
	return strconv.Itoa(c.pid())
}

// Diagnose adds nothing: the session says how the process ended.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost takes the address that the plugin says it listens at. The host
// connects to no other socket than one in the directory that it made for it.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || filepath.Dir(filepath.Clean(address)) != filepath.Clean(c.sockets) {
		return "", "", fmt.Errorf("it listens at %q, %q: want a unix socket in the directory named by %s", network, address, plugin.EnvUnixSocketDir)
	}
	return network, address, nil
}

func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

func (c *child) closeInherited() {
	for _, f := range c.inherited {
		f.Close()
	}
	c.inherited = nil
}

func (c *child) closeAll() {
	c.closeInherited()
	if c.stdout != nil {
		c.stdout.Close()
	}
	if c.stderr != nil {
		c.stderr.Close()
	}
}

// pipeReader is a pipe that ends, for its reader, some time after its process.
type pipeReader struct {
	*os.File
	ended chan struct{}
	once  sync.Once
}

func newPipeReader(f *os.File) *pipeReader { return &pipeReader{File: f, ended: make(chan struct{})} }

func (p *pipeReader) Read(b []byte) (int, error) {
	n, err := p.File.Read(b)
	if err == nil {
		return n, nil
	}
	p.once.Do(func() { close(p.ended) })
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// expire lets the reader end after drainTime.
func (p *pipeReader) expire() {
	// Fails only on a closed pipe, which has no reader to end.
	_ = p.SetReadDeadline(time.Now().Add(drainTime))
}
