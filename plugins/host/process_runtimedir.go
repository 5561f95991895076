package host

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
)

const (
	runtimePrefix = ".trivium-run-"
	// maxRuntimeBase leaves room in a socket path (107 bytes) for our directory,
	// go-plugin's directory in it, and the socket's own name.
	maxRuntimeBase = 107 - len("/.trivium-run-4194304-4294967295/plugin-dir4294967295/plugin4294967295")
)

// runtimeName is what newRuntimeDir calls a directory and nobody else does:
// what does not have such a name is never swept.
var runtimeName = regexp.MustCompile(`^\.trivium-run-[0-9]+-[0-9]+$`)

// RuntimeDir holds the sockets of the plugin processes: short, private (0700),
// locked while its owner lives, removed by Close or by the next host.
type RuntimeDir struct {
	Path string
	lock *os.File
}

// OpenRuntimeDir makes a directory under XDG_RUNTIME_DIR, TMPDIR or /tmp, the
// first that exists and is short enough, and removes those of dead hosts there.
func OpenRuntimeDir(getenv func(string) string) (*RuntimeDir, error) {
	var reasons []string
	for _, base := range []string{getenv("XDG_RUNTIME_DIR"), getenv("TMPDIR"), "/tmp"} {
		if base == "" {
			continue
		}
		if len(base) > maxRuntimeBase {
			reasons = append(reasons, fmt.Sprintf("%s is longer than %d bytes", base, maxRuntimeBase))
			continue
		}
		sweep(base)
		d, err := newRuntimeDir(base)
		if err == nil {
			return d, nil
		}
		reasons = append(reasons, err.Error())
	}
	return nil, core.Errorf(core.ErrInternal, "no directory for plugin sockets: %v", reasons).
		WithHint("set XDG_RUNTIME_DIR to a directory of yours with a path of at most %d bytes", maxRuntimeBase)
}

// newRuntimeDir creates and locks a directory. A host that sweeps in between
// may remove it before it is locked: then the next one is tried.
func newRuntimeDir(base string) (*RuntimeDir, error) {
	for range 100 {
		path, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-", runtimePrefix, os.Getpid()))
		if err != nil {
			return nil, err
		}
		lock, err := os.Open(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := flock(lock, unix.LOCK_EX); err != nil {
			lock.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if sameFile(lock, path) {
			return &RuntimeDir{Path: path, lock: lock}, nil
		}
		lock.Close()
	}
	return nil, fmt.Errorf("%s: new directories disappear", base)
}

// Close removes the directory. It may be repeated.
func (d *RuntimeDir) Close() error {
	err := os.RemoveAll(d.Path)
	d.lock.Close()
	return err
}

// sweep removes the directories of dead hosts: ours by owner, and not locked.
// A lock, unlike a process id, is right across namespaces and reused ids.
func sweep(base string) {
	paths, _ := filepath.Glob(filepath.Join(base, runtimePrefix+"*-*")) // the pattern is well-formed
	for _, path := range paths {
		if !runtimeName.MatchString(filepath.Base(path)) {
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil && sameFile(f, path) {
			os.RemoveAll(path) // what cannot be removed is tried again by the next host
		}
		f.Close()
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, aerr := f.Stat()
	b, berr := os.Lstat(path)
	return aerr == nil && berr == nil && os.SameFile(a, b)
}
