package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/confine"
)

// confinedDescriptors is how many a confined process may have open: its pipes,
// its socket, and two for each piece of memory that it is told of.
const confinedDescriptors = 4096

// Confinement is what a plugin process is restricted to.
type Confinement struct {
	Launcher *os.File // a verified copy; stays open
	Rights   Rights
	// FileSize bounds the files that it writes; 0: no limit.
	FileSize uint64
}

// policy is what the launcher is told.
func (c *Confinement) policy(interpreter *interpreter, scratch, sockets string) *confine.Policy {
	p := &confine.Policy{
		Program: plugins.ProgramFD, Scratch: scratch, Sockets: sockets, Read: slices.Clone(c.Rights.Read), ReadWrite: c.Rights.Write,
		Memory: c.Rights.memory(), FileSize: c.FileSize, Descriptors: confinedDescriptors,
		Network: c.Rights.Net, Processes: c.Rights.Processes, GPU: c.Rights.GPU,
	}
	if interpreter != nil {
		p.Interpreter = interpreter.path
		p.Read = append(p.Read, interpreter.read...)
	}
	return p
}

// interpreter runs plugins that are not binaries.
type interpreter struct {
	path string
	args []string // before the program
	read []string // what it is made of
}

// Python is the interpreter of plugins written in Python.
type Python struct {
	Executable string   `json:"executable"` // "": python3 on PATH
	Read       []string `json:"read"`       // folders with its libraries
}

// interpreter resolves the program. It is run isolated: neither the environment
// nor the working directory add modules.
func (p Python) interpreter() (*interpreter, error) {
	executable := p.Executable
	if executable == "" {
		found, err := exec.LookPath("python3")
		if err != nil {
			return nil, core.Errorf(core.ErrPluginMissing, "it needs Python: %w", err).WithHint("install python3, or use the plugin from Python")
		}
		executable = found
	}
	read := append([]string{filepath.Dir(filepath.Dir(executable))}, p.Read...)
	if target, err := filepath.EvalSymlinks(executable); err == nil {
		read = append(read, filepath.Dir(filepath.Dir(target)))
	}
	return &interpreter{path: executable, args: []string{"-I", "-B", fmt.Sprintf("/proc/self/fd/%d", plugins.ProgramFD)}, read: read}, nil
}

// launcher is the verified copy of the program that confines plugins, made when
// it is first needed.
type launcher struct {
	path, sha256 string

	once sync.Once
	file *os.File
	err  error
}

func (l *launcher) open() (*os.File, error) {
	l.once.Do(func() {
		if l.path == "" {
			l.err = core.Errorf(core.ErrPluginRefused, "there is no launcher to confine it with").
				WithHint("install the built-in plugin, which brings one, or allow plugins that are not confined")
			return
		}
		l.file, l.err = verifiedExecutable(l.path, l.sha256)
	})
	return l.file, l.err
}

func (l *launcher) close() {
	l.once.Do(func() { l.err = core.Errorf(core.ErrEngineClosed, "the plugin host is closed") })
	if l.file != nil {
		l.file.Close()
	}
}
