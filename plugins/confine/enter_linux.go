package confine

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Args are the arguments with which the launcher becomes a program: its own
// name, the policy, and the program's arguments from zero on.
func Args(p *Policy, program []string) ([]string, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return append([]string{name, string(text)}, program...), nil
}

// Enter is the whole of the launcher: it confines the process and becomes the
// program. In a process that was not started as the launcher it does nothing,
// so that a test binary can be its own.
func Enter() {
	if len(os.Args) < 3 || os.Args[0] != name {
		return
	}
	// What follows holds for one thread, the one that becomes the program.
	runtime.LockOSThread()
	if err := enter(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "cannot confine the plugin: %v\n", err)
		os.Exit(refusedCode)
	}
}

func enter(text string, args []string) error {
	var p Policy
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	for _, step := range []func(*Policy) error{limit, changeDirectory, noNewPrivileges, confineFiles, dropCapabilities, filterCalls} {
		if err := step(&p); err != nil {
			return err
		}
	}
	return become(&p, args)
}

func limit(p *Policy) error {
	for _, l := range []struct {
		resource int
		value    uint64
		none     bool
	}{
		{unix.RLIMIT_CORE, 0, false},
		{unix.RLIMIT_DATA, p.Memory, p.Memory == 0},
		{unix.RLIMIT_FSIZE, p.FileSize, p.FileSize == 0},
		{unix.RLIMIT_NOFILE, p.Descriptors, p.Descriptors == 0},
		{unix.RLIMIT_MSGQUEUE, 0, false},
	} {
		if l.none {
			continue
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(l.resource, &old); err != nil {
			return fmt.Errorf("getrlimit %d: %w", l.resource, err)
		}
		value := min(l.value, old.Max)
		// Not unix.Setrlimit: the runtime would put back its own idea of the
		// number of descriptors on exec.
		if _, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(l.resource),
			uintptr(unsafe.Pointer(&unix.Rlimit{Cur: value, Max: value})), 0, 0, 0); errno != 0 {
			return fmt.Errorf("setrlimit %d to %d: %w", l.resource, value, errno)
		}
	}
	return nil
}

func changeDirectory(p *Policy) error {
	if err := os.Chdir(p.Scratch); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	return nil
}

func noNewPrivileges(*Policy) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}

// dropCapabilities leaves none, not even to a root user. With no_new_privs,
// exec gives none back.
func dropCapabilities(*Policy) error {
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		// Fails without CAP_SETPCAP, and then there is nothing to gain from the set.
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

func filterCalls(p *Policy) error { return newFilter(p).install() }

// become runs the program, which is a descriptor, or is read from one by an
// interpreter.
func become(p *Policy, args []string) error {
	if p.Interpreter != "" {
		err := syscall.Exec(p.Interpreter, args, os.Environ())
		return fmt.Errorf("%s: %w", p.Interpreter, err)
	}
	unix.CloseOnExec(p.Program)
	path := "/proc/self/fd/" + strconv.Itoa(p.Program)
	if err := syscall.Exec(path, args, os.Environ()); err != nil {
		return &os.PathError{Op: "fork/exec", Path: args[0], Err: err}
	}
	return nil
}
