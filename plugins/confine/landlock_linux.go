package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	readFile  = unix.LANDLOCK_ACCESS_FS_READ_FILE
	readOnly  = readFile | unix.LANDLOCK_ACCESS_FS_READ_DIR
	fileWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	readWrite = readOnly | fileWrite | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REFER
	sockets   = readOnly | fileWrite | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	forFiles  = unix.LANDLOCK_ACCESS_FS_EXECUTE | readFile | fileWrite
	everyFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | readWrite | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
)

// LandlockABI is the version of Landlock of this kernel, 0 without it.
func LandlockABI() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// ruleset is a Landlock ruleset that is being made.
type ruleset struct {
	fd      int
	handled uint64
}

// newRuleset handles every right that the kernel knows: what no rule allows is
// denied.
func newRuleset(p *Policy) (*ruleset, error) {
	abi := LandlockABI()
	if abi < 1 {
		return nil, errors.New("this kernel has no Landlock: want Linux 5.13 or newer, with landlock among its security modules")
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: everyFile}
	if abi < 2 {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi < 3 {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi < 5 {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 4 && !p.Network {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	size := unsafe.Offsetof(attr.Handled_access_net)
	if abi >= 4 {
		size = unsafe.Offsetof(attr.Scoped)
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		size = unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return nil, fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	return &ruleset{fd: int(fd), handled: attr.Handled_access_fs}, nil
}

// allow gives rights on a file, or on a directory and what is below it. What is
// not there is no error: it cannot be used either.
func (r *ruleset) allow(path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return r.allowFD(fd, path, rights)
}

func (r *ruleset) allowFD(fd int, path string, rights uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= forFiles
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.handled, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_add_rule for %s: %w", path, errno)
	}
	return nil
}

// restrict applies the ruleset to this thread.
func (r *ruleset) restrict() error {
	defer unix.Close(r.fd)
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0); errno != 0 {
		return fmt.Errorf("landlock_restrict_self: %w", errno)
	}
	return nil
}

// confineFiles lets this thread reach only the files of the policy.
func confineFiles(p *Policy) error {
	r, err := newRuleset(p)
	if err != nil {
		return err
	}
	for _, set := range []struct {
		paths  []string
		rights uint64
	}{
		{system, readOnly},
		{loaders, readOnly | unix.LANDLOCK_ACCESS_FS_EXECUTE},
		{p.Read, readOnly},
		{devices, readFile | fileWrite},
		{p.ReadWrite, readWrite},
		{[]string{p.Scratch}, readWrite},
		{[]string{p.Sockets}, sockets},
	} {
		for _, path := range set.paths {
			if err := r.allow(path, set.rights); err != nil {
				return err
			}
		}
	}
	if err := r.allowSelf(); err != nil {
		return err
	}
	if p.GPU {
		for _, pattern := range accelerators {
			paths, _ := filepath.Glob(pattern) // the patterns are well-formed
			for _, path := range paths {
				if err := r.allow(path, readOnly|fileWrite); err != nil {
					return err
				}
			}
		}
	}
	if p.Interpreter != "" || p.Processes {
		for _, path := range append([]string{"/usr", "/bin"}, p.Interpreter) {
			if err := r.allow(path, readOnly|unix.LANDLOCK_ACCESS_FS_EXECUTE); err != nil {
				return err
			}
		}
	}
	return r.restrict()
}

// allowSelf gives the program its own part of /proc: it keeps this process id.
// The descriptor stays open, since the rule holds for the inode, which the
// kernel would otherwise forget and make anew.
func (r *ruleset) allowSelf() error {
	fd, err := unix.Open("/proc/self", unix.O_PATH, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/self", Err: err}
	}
	return r.allowFD(fd, "/proc/self", readOnly|fileWrite)
}
