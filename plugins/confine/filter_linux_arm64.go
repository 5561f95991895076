package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

func (f *filter) otherNumbers() {}

// forks are the older ways to start a process, which this architecture lacks.
var forks []uint32

// deniedHere are calls that not every architecture has.
var deniedHere = []uint32{unix.SYS_KEXEC_FILE_LOAD}
