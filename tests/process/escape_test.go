package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/confine"
	"github.com/trivium-ml/trivium/plugins/host"
)

// escape tries to reach what a confined plugin must not. A call that succeeds
// got out.
type escape struct{}

func (escape) Info() core.Info {
	text := func(name string) core.Parameter {
		return core.Parameter{Name: name, Type: core.String, Default: "", Doc: name}
	}
	return describe(core.Position, "escape", text("attempt"), text("secret"), text("path_socket"), text("abstract"), text("tcp"),
		core.Parameter{Name: "host", Type: core.Int, Default: int64(0), Doc: "process id"})
}

func (escape) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	for _, a := range attempts {
		if a.name == req.Params.Text("attempt") {
			if err := a.try(target{req.Params}); err != nil {
				return nil, fmt.Errorf("denied: %w", err)
			}
			return plain(req), nil
		}
	}
	return nil, errors.New("no such attempt")
}

// target is what to reach.
type target struct{ params core.Params }

func (t target) secret() string { return t.params.Text("secret") }
func (t target) beside() string { return filepath.Join(filepath.Dir(t.secret()), "written") }
func (t target) host() int      { return t.params.Int("host") }
func (t target) proc(name string) string {
	return fmt.Sprintf("/proc/%d/%s", t.host(), name)
}

// sys makes a system call and gives its error.
func sys(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func read(path string) error {
	_, err := os.ReadFile(path)
	return err
}

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

func socket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// attempts are ways out. needs is the layer that stops it, and the Landlock
// version where that is not 1.
var attempts = []struct {
	name, needs string
	abi         int
	try         func(target) error
}{
	{"read a file", "landlock", 1, func(t target) error { return read(t.secret()) }},
	{"list a directory", "landlock", 1, func(t target) error { _, err := os.ReadDir(filepath.Dir(t.secret())); return err }},
	{"write a file", "landlock", 1, func(t target) error { return os.WriteFile(t.beside(), nil, 0o600) }},
	{"truncate a file", "landlock", 3, func(t target) error { return os.Truncate(t.secret(), 0) }},
	{"remove a file", "landlock", 1, func(t target) error { return os.Remove(t.secret()) }},
	{"rename a file", "landlock", 1, func(t target) error { return os.Rename(t.secret(), t.beside()) }},
	{"link a file into scratch", "landlock", 1, func(t target) error {
		if err := os.Link(t.secret(), "linked"); err != nil {
			return err
		}
		return read("linked")
	}},
	{"read through a symbolic link", "landlock", 1, func(t target) error {
		if err := os.Symlink(t.secret(), "soft"); err != nil {
			return nil // cannot even try: that would be a mistake in the policy
		}
		return read("soft")
	}},
	{"make a directory", "landlock", 1, func(t target) error { return os.Mkdir(t.beside(), 0o700) }},
	{"chmod a file", "seccomp", 1, func(t target) error { return os.Chmod(t.secret(), 0o777) }},
	{"chown a file", "seccomp", 1, func(t target) error { return os.Chown(t.secret(), os.Getuid(), os.Getgid()) }},
	{"change a file's times", "seccomp", 1, func(t target) error { return os.Chtimes(t.secret(), time.Now(), time.Now()) }},
	{"set an attribute", "seccomp", 1, func(t target) error { return unix.Setxattr(t.secret(), "user.x", []byte("1"), 0) }},
	{"read the host's environment", "landlock", 1, func(t target) error { return read(t.proc("environ")) }},
	{"read the host's memory", "landlock", 1, func(t target) error { _, err := os.OpenFile(t.proc("mem"), os.O_RDWR, 0); return err }},
	{"open the host's descriptors", "landlock", 1, func(t target) error { _, err := os.ReadDir(t.proc("fd")); return err }},
	{"trace the host", "seccomp", 1, func(t target) error { return unix.PtraceAttach(t.host()) }},
	{"read the host with process_vm_readv", "seccomp", 1, func(t target) error {
		var b [8]byte
		local := []unix.Iovec{{Base: &b[0], Len: 8}}
		_, err := unix.ProcessVMReadv(t.host(), local, []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&b)), Len: 8}}, 0)
		return err
	}},
	{"take the host's descriptor", "seccomp", 1, func(t target) error {
		pidfd, err := unix.PidfdOpen(t.host(), 0)
		if err != nil {
			return err
		}
		defer unix.Close(pidfd)
		_, err = unix.PidfdGetfd(pidfd, 0, 0)
		return err
	}},
	{"signal the host", "landlock", 6, func(t target) error { return unix.Kill(t.host(), unix.SIGCONT) }},
	{"signal the host with tgkill", "landlock", 6, func(t target) error { return unix.Tgkill(t.host(), t.host(), unix.SIGCONT) }},
	{"limit the host", "seccomp", 1, func(t target) error {
		return unix.Prlimit(t.host(), unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	}},
	{"bind the host to one processor", "seccomp", 1, func(t target) error {
		var set unix.CPUSet
		set.Set(0)
		return unix.SchedSetaffinity(t.host(), &set)
	}},
	{"renice the host", "seccomp", 1, func(t target) error { return unix.Setpriority(unix.PRIO_PROCESS, t.host(), 19) }},
	{"connect by TCP", "seccomp", 1, func(t target) error { return dial("tcp", t.params.Text("tcp")) }},
	{"send by UDP", "seccomp", 1, func(target) error { return dial("udp", "127.0.0.1:9") }},
	{"open a raw socket", "seccomp", 1, func(target) error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
	{"open a netlink socket", "seccomp", 1, func(target) error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, 0) }},
	{"open a vsock", "seccomp", 1, func(target) error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) }},
	{"connect to a unix socket", "seccomp", 1, func(t target) error { return dial("unix", t.params.Text("path_socket")) }},
	{"connect to an abstract socket", "seccomp", 1, func(t target) error { return dial("unix", t.params.Text("abstract")) }},
	{"start a process", "seccomp", 1, func(target) error { return exec.Command("/bin/true").Run() }},
	{"fork", "seccomp", 1, func(target) error { return sys(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_VFORK) }},
	{"become a shell", "landlock", 1, func(target) error { return syscall.Exec("/bin/sh", []string{"sh", "-c", "exit 0"}, nil) }},
	{"leave the process group", "seccomp", 1, func(target) error { _, err := unix.Setsid(); return err }},
	{"make a memory file", "seccomp", 1, func(target) error { _, err := unix.MemfdCreate("x", 0); return err }},
	{"map memory that no limit counts", "seccomp", 1, func(target) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
		return err
	}},
	{"raise a limit", "limits", 1, func(target) error {
		return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	}},
	{"use io_uring", "seccomp", 1, func(target) error {
		var params [120]byte
		return sys(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)))
	}},
	{"load a BPF program", "seccomp", 1, func(target) error { return sys(unix.SYS_BPF, 5, 0, 0) }},
	{"make a namespace", "seccomp", 1, func(target) error { return sys(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) }},
	{"mount", "seccomp", 1, func(target) error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }},
	{"change the root", "seccomp", 1, func(target) error { return unix.Chroot("/tmp") }},
	{"open a disk", "landlock", 1, func(target) error {
		for _, disk := range []string{"/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mem", "/dev/tty", "/dev/ptmx"} {
			if _, err := os.Open(disk); err == nil {
				return nil
			}
		}
		return unix.EACCES
	}},
	{"make a device", "capabilities", 1, func(target) error { return unix.Mknod("disk", unix.S_IFBLK|0o600, 0x800) }},
	{"use the kernel's keys", "seccomp", 1, func(target) error { return sys(unix.SYS_KEYCTL, 0, ^uintptr(2), 0) }},
	{"make System V memory", "seccomp", 1, func(target) error { _, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o600); return err }},
	{"write to the runtime directory", "landlock", 1, func(target) error {
		here, err := os.Getwd()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(filepath.Dir(here), "canary"), nil, 0o600)
	}},
	{"change the system's settings", "landlock", 1, func(target) error { return os.WriteFile("/proc/sys/vm/overcommit_memory", []byte("1"), 0) }},
	{"set the clock", "seccomp", 1, func(target) error { return sys(unix.SYS_SETTIMEOFDAY, 0, 0) }},
	{"gain privileges", "no_new_privs", 1, func(target) error {
		if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || n != 1 {
			return nil
		}
		return unix.Setresuid(12345, 12345, 12345) // needs a capability
	}},
}

// reachable puts up what the attempts try to reach, and checks that it is as it was.
func reachable(t *testing.T) core.Params {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	listen := func(network, address string) string {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().String()
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(secret); err != nil || string(text) != "token" {
			t.Errorf("the file is %q, %v", text, err)
		}
		if files, _ := os.ReadDir(filepath.Dir(secret)); len(files) != 1 {
			t.Errorf("beside the file: %v", files)
		}
	})
	return core.Params{
		"secret": secret, "host": int64(os.Getpid()), "tcp": listen("tcp", "127.0.0.1:0"),
		"path_socket": listen("unix", filepath.Join(shortDir(t), "s")), "abstract": listen("unix", "@trivium-escape"+t.Name()[:4]),
	}
}

func TestEscapes(t *testing.T) {
	params := reachable(t)
	_, engine := open(t, host.Options{Dirs: []string{install(t, host.Rights{}, thirdParty())}})
	for _, a := range attempts {
		t.Run(a.name, func(t *testing.T) {
			if a.abi > confine.LandlockABI() {
				t.Skipf("needs Landlock %d: this kernel has %d", a.abi, confine.LandlockABI())
			}
			params["attempt"] = a.name
			_, err := ask(t.Context(), engine, "escape", params)
			if err == nil || !strings.Contains(err.Error(), "denied:") {
				t.Errorf("got %v: want it denied", err)
			}
			t.Logf("%s: %v", a.needs, err)
		})
	}
}

// TestEscapesWithoutConfinement checks that the attempts can succeed at all: a
// test whose attempts fail by themselves would show nothing.
func TestEscapesWithoutConfinement(t *testing.T) {
	harmless := map[string]bool{
		"read a file": true, "list a directory": true, "read the host's environment": true, "read the host's memory": true,
		"open the host's descriptors": true, "signal the host": true, "signal the host with tgkill": true, "connect by TCP": true,
		"send by UDP": true, "connect to a unix socket": true, "connect to an abstract socket": true, "start a process": true,
		"open a netlink socket": true, "make a memory file": true, "map memory that no limit counts": true, "make System V memory": true,
		"chown a file": true, "change a file's times": true, "read through a symbolic link": true, "link a file into scratch": false,
	}
	params := reachable(t)
	_, engine := open(t, host.Options{Unconfined: true, Dirs: []string{install(t, host.Rights{}, thirdParty())}})
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(filepath.Join(here, "soft")) })
	for _, a := range attempts {
		if !harmless[a.name] || os.Getuid() != 0 && strings.Contains(a.name, "host's") {
			continue
		}
		params["attempt"] = a.name
		if _, err := ask(t.Context(), engine, "escape", params); err != nil {
			t.Errorf("%s: %v", a.name, err)
		}
	}
}
