package sdk

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/plugins"
)

// attach waits for a host at a socket and takes over what it sends, as if this
// process had been started by it.
func attach(path string) error {
	os.Remove(path)
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", plugins.EnvAttach, err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("%s: bind %s: %w", plugins.EnvAttach, path, err)
	}
	defer os.Remove(path)
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "process %d waits for a host with %s=NAME=%s\n", os.Getpid(), plugins.EnvReattach, path)
	for {
		conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: accept: %w", plugins.EnvAttach, err)
		}
		defer unix.Close(conn)
		return takeOver(conn)
	}
}

func takeOver(conn int) error {
	packet, rights := make([]byte, plugins.MaxAttach), make([]byte, unix.CmsgSpace(4*4))
	n, rn, _, _, err := unix.Recvmsg(conn, packet, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("what the host sent: %w", err)
	}
	controls, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return fmt.Errorf("what the host sent: %w", err)
	}
	if len(controls) != 1 {
		return fmt.Errorf("the host sent %d sets of descriptors: want one", len(controls))
	}
	fds, err := unix.ParseUnixRights(&controls[0])
	if err != nil {
		return fmt.Errorf("what the host sent: %w", err)
	}
	if len(fds) != 3 {
		return fmt.Errorf("the host sent %d descriptors: want 3", len(fds))
	}
	var numbers []string
	for _, fd := range fds {
		numbers = append(numbers, strconv.Itoa(fd))
	}
	for line := range strings.SplitSeq(string(packet[:n]), "\x00") {
		name, value, _ := strings.Cut(line, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return os.Setenv(plugins.EnvDescriptors, strings.Join(numbers, ","))
}

// attached reports whether the process was started by hand.
func attached() bool { return os.Getenv(plugins.EnvDescriptors) != "" }

// descriptor is the number that one of the descriptors has here.
func descriptor(fd int) int {
	numbers := strings.Split(os.Getenv(plugins.EnvDescriptors), ",")
	if !attached() || fd-plugins.SideChannelFD >= len(numbers) {
		return fd
	}
	number, err := strconv.Atoi(numbers[fd-plugins.SideChannelFD])
	if err != nil {
		return -1
	}
	return number
}
