package sdk

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/plugins"
)

// Hosted reports whether the process was started by a Trivium host.
func Hosted() bool { return os.Getenv(plugins.CookieKey) == plugins.CookieValue }

// Inherit takes over what the host gave this process, and ties its life to the
// host's. Serve calls it first, in a process that is Hosted. It returns the side
// channel of package shm, which the caller attaches and closes.
//
// Afterwards os.Stdout leads to the host's handshake, for go-plugin, which puts
// its own pipe there as soon as it has written its line. Descriptor 1 was the
// host's log from the start, so what C libraries print does no harm.
func Inherit() (sideChannel *os.File, err error) {
	host, err := strconv.Atoi(os.Getenv(plugins.EnvHostPID))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plugins.EnvHostPID, err)
	}
	if err := endWith(host); err != nil {
		return nil, err
	}
	signal.Ignore(os.Interrupt) // Ctrl-C is the host's: it cancels calls
	nameProcess(os.Getenv(plugins.EnvPath))
	sideChannel, err = inherited(plugins.SideChannelFD, unix.S_IFSOCK, "side channel")
	if err != nil {
		return nil, err
	}
	handshake, err := inherited(plugins.HandshakeFD, unix.S_IFIFO, "handshake")
	if err != nil {
		return nil, err
	}
	os.Stdout = handshake
	return sideChannel, nil
}

// inherited checks that fd is of the kind expected, and keeps it from processes
// that the plugin starts.
func inherited(fd int, kind uint32, name string) (*os.File, error) {
	var st unix.Stat_t
	fd = descriptor(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%s: descriptor %d: %w", name, fd, err)
	}
	if st.Mode&unix.S_IFMT != kind {
		return nil, fmt.Errorf("%s: descriptor %d has mode %#o: want %#o", name, fd, st.Mode&unix.S_IFMT, kind)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// endWith ends this process as soon as the host has ended, however that
// happens. PR_SET_PDEATHSIG would not do: it follows the thread that started us.
func endWith(host int) error {
	fd, err := unix.PidfdOpen(host, 0)
	if err == unix.ESRCH {
		os.Exit(1)
	}
	if err != nil {
		return fmt.Errorf("watch the host: pidfd_open: %w", err)
	}
	// Had the host died before, its id could belong to another process by now.
	if os.Getppid() != host && !attached() {
		os.Exit(1)
	}
	go func() {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, -1)
			if n > 0 || (err != nil && err != unix.EINTR) {
				os.Exit(1)
			}
		}
	}()
	return nil
}

// nameProcess shows the plugin's name in ps and top; the kernel's own guess is
// the number of the descriptor it was executed from.
func nameProcess(path string) {
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(path)), 0) // cosmetic
}
