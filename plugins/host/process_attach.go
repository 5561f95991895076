package host

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
)

// reattached reads which plugins were started by hand, and where they wait.
func reattached(text string) (map[string]string, error) {
	waiting := make(map[string]string)
	for pair := range strings.SplitSeq(text, ",") {
		if pair == "" {
			continue
		}
		name, path, ok := strings.Cut(pair, "=")
		if !ok || name == "" || path == "" {
			return nil, core.Invalid("", "%s: %q: want name=socket", plugins.EnvReattach, pair)
		}
		waiting[name] = path
	}
	return waiting, nil
}

// attach hands what a child process would inherit to one that waits. The caller
// holds mu.
func (c *child) attach() error {
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(conn)
	if err := unix.Connect(conn, &unix.SockaddrUnix{Name: c.waitsAt}); err != nil {
		return fmt.Errorf("no plugin waits at %s: %w (start it with %s=%s)", c.waitsAt, err, plugins.EnvAttach, c.waitsAt)
	}
	peer, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if int(peer.Uid) != os.Getuid() {
		return fmt.Errorf("the process at %s is of user %d", c.waitsAt, peer.Uid)
	}
	packet := []byte(strings.Join(c.cmd.Env, "\x00"))
	if len(packet) > plugins.MaxAttach {
		return errors.New("the environment is too long")
	}
	var fds []int
	for _, f := range c.cmd.ExtraFiles[:3] {
		fds = append(fds, int(f.Fd()))
	}
	if c.pidfd, err = unix.PidfdOpen(int(peer.Pid), 0); err != nil {
		return err
	}
	if err := unix.Sendmsg(conn, packet, unix.UnixRights(fds...), nil, 0); err != nil {
		unix.Close(c.pidfd)
		return err
	}
	c.attachedPID = int(peer.Pid)
	return nil
}

// awaitAttached returns when the process that waited has ended.
func (c *child) awaitAttached() {
	fds := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(fds, -1); n > 0 || err != nil && err != unix.EINTR {
			break
		}
	}
	c.mu.Lock()
	c.running, c.status = false, exitedWell
	unix.Close(c.pidfd)
	c.mu.Unlock()
	c.stdout.expire()
	c.stderr.expire()
	close(c.exited)
}
