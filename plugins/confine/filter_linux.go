package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filter is a classic BPF program over the number and arguments of a system
// call. It denies what it lists, because a strategy may be written in any
// language; files are Landlock's part.
type filter []unix.SockFilter

const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16

	deny = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	// absent makes libraries use what came before clone3.
	absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

func (f *filter) load(offset uint32) {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

func (f *filter) and(bits uint32) {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: bits})
}

// unless skips the next n instructions when the value is not k.
func (f *filter) unless(k uint32, n uint8) {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: n})
}

// when skips the next n instructions when the value is k.
func (f *filter) when(k uint32, n uint8) {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: n})
}

func (f *filter) answer(action uint32) {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
}

// call answers a system call whatever its arguments.
func (f *filter) call(number uint32, action uint32) {
	f.unless(number, 1)
	f.answer(action)
}

// argument denies a call in which an argument, masked, is (or is not) a value.
// The arguments looked at are ints, whose upper half the kernel ignores.
func (f *filter) argument(number uint32, index int, mask, value uint32, denied bool) {
	f.unless(number, 5)
	f.load(offArgs + 8*uint32(index))
	f.and(mask)
	if denied {
		f.unless(value, 1)
	} else {
		f.when(value, 1)
	}
	f.answer(deny)
	f.load(offNumber)
}

// newFilter makes the filter of a policy.
func newFilter(p *Policy) filter {
	var f filter
	f.load(offArch)
	f.when(auditArch, 1)
	f.answer(unix.SECCOMP_RET_KILL_PROCESS)
	f.load(offNumber)
	f.otherNumbers()
	for _, number := range denied {
		f.call(number, deny)
	}
	for _, number := range deniedHere {
		f.call(number, deny)
	}
	// Another process's limits and scheduling, its own are 0.
	for _, number := range []uint32{unix.SYS_PRLIMIT64, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETAFFINITY} {
		f.argument(number, 0, ^uint32(0), 0, false)
	}
	f.argument(unix.SYS_SETPRIORITY, 1, ^uint32(0), 0, false)
	f.argument(unix.SYS_IOPRIO_SET, 1, ^uint32(0), 0, false)
	if !p.Network {
		f.argument(unix.SYS_SOCKET, 0, ^uint32(0), unix.AF_UNIX, false)
		f.argument(unix.SYS_SOCKET, 1, 0xf, unix.SOCK_STREAM, false)
		f.argument(unix.SYS_SOCKETPAIR, 1, 0xf, unix.SOCK_STREAM, false)
		f.call(unix.SYS_CONNECT, deny)
	}
	if !p.Processes {
		for _, number := range append([]uint32{unix.SYS_SETSID, unix.SYS_SETPGID}, forks...) {
			f.call(number, deny)
		}
		f.argument(unix.SYS_CLONE, 0, unix.CLONE_THREAD, 0, true)
		f.call(unix.SYS_CLONE3, absent)
	}
	if !p.GPU { // memory that no limit counts
		f.call(unix.SYS_MEMFD_CREATE, deny)
		f.argument(unix.SYS_MMAP, 3, unix.MAP_SHARED|unix.MAP_ANONYMOUS, unix.MAP_SHARED|unix.MAP_ANONYMOUS, true)
	}
	f.answer(unix.SECCOMP_RET_ALLOW)
	return f
}

// install filters this thread and what it becomes. It needs no_new_privs.
func (f filter) install() error {
	program := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// HasSeccomp reports whether this kernel takes filters.
func HasSeccomp() bool {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0
}

// denied are calls that no strategy needs and that Landlock does not see, or
// that would reach around it.
var denied = []uint32{
	// Other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_PIDFD_GETFD, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	// Metadata of files, which Landlock leaves to the owner.
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT, unix.SYS_FILE_SETATTR,
	unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_FANOTIFY_INIT,
	// Namespaces and mounts.
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	// The kernel's larger attack surfaces; io_uring also makes calls that no filter sees.
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_QUOTACTL,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	// Memory and queues that outlive the process and that no limit counts.
	unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN, unix.SYS_MEMFD_SECRET,
}
