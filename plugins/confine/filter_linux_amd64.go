package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// x32 numbers are the same calls for another ABI, which the list would miss.
const x32 = 0x40000000

func (f *filter) otherNumbers() {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32, Jf: 1})
	f.answer(deny)
}

// forks are the older ways to start a process.
var forks = []uint32{unix.SYS_FORK, unix.SYS_VFORK}

// deniedHere are calls that newer architectures never had.
var deniedHere = []uint32{
	unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_FUTIMESAT,
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_KEXEC_FILE_LOAD,
}
