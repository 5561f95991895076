package host

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/trivium-ml/trivium/core"
)

// Rights are what a confined plugin may do beyond computing and reading the
// system's libraries. A plugin asks for them in its manifest; who adds it sees
// them, and plugins.lock remembers what was granted.
type Rights struct {
	GPU       bool     `json:"gpu,omitempty"`        // devices of accelerators
	Net       bool     `json:"net,omitempty"`        // sockets of every kind
	Processes bool     `json:"processes,omitempty"`  // may start processes
	Read      []string `json:"read,omitempty"`       // files and directories
	Write     []string `json:"write,omitempty"`      // files and directories, read too
	MemoryMiB int64    `json:"memory_mib,omitempty"` // private memory; 0: 4 GiB
}

const (
	defaultMemoryMiB = 4 << 10
	maxMemoryMiB     = 1 << 24
)

// none reports whether nothing has to be granted.
func (r Rights) none() bool {
	return !r.GPU && !r.Net && !r.Processes && len(r.Read) == 0 && len(r.Write) == 0 && r.MemoryMiB <= defaultMemoryMiB
}

// String lists them for people; "none".
func (r Rights) String() string {
	var list []string
	for _, right := range []struct {
		name  string
		asked bool
	}{
		{"gpu", r.GPU}, {"net", r.Net}, {"processes", r.Processes},
		{"read " + strings.Join(r.Read, " "), len(r.Read) > 0}, {"write " + strings.Join(r.Write, " "), len(r.Write) > 0},
		{fmt.Sprintf("memory %d MiB", r.MemoryMiB), r.MemoryMiB > defaultMemoryMiB},
	} {
		if right.asked {
			list = append(list, right.name)
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, ", ")
}

func (r Rights) equal(o Rights) bool {
	return r.GPU == o.GPU && r.Net == o.Net && r.Processes == o.Processes && r.MemoryMiB == o.MemoryMiB &&
		slices.Equal(r.Read, o.Read) && slices.Equal(r.Write, o.Write)
}

func (r Rights) check() error {
	for _, path := range append(r.Read[:len(r.Read):len(r.Read)], r.Write...) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return core.Invalid("", "rights: path %q: want an absolute path without . and ..", path)
		}
	}
	if r.MemoryMiB < 0 || r.MemoryMiB > maxMemoryMiB {
		return core.Invalid("", "rights: memory_mib %d: want 0 to %d", r.MemoryMiB, maxMemoryMiB)
	}
	return nil
}

func (r Rights) memory() uint64 {
	if r.MemoryMiB == 0 {
		return defaultMemoryMiB << 20
	}
	return uint64(r.MemoryMiB) << 20
}
