package pybind

import (
	"os"

	"github.com/trivium-ml/trivium/core"
)

// homePID is the process that loaded the library.
var homePID = os.Getpid()

// refuseForked fails in a forked child, where Go's other threads do not exist and a
// call into a plugin would wait for ever. It is the second line: Python checks first,
// since after a fork even entering Go is not certain to return.
func refuseForked() error {
	return forkError(os.Getpid(), homePID)
}

func forkError(pid, home int) error {
	if pid == home {
		return nil
	}
	return core.Errorf(core.ErrForkedProcess, "process %d is a fork of process %d, which loaded trivium", pid, home).
		WithHint(`import trivium after the fork, or use multiprocessing's "spawn" start method`)
}
