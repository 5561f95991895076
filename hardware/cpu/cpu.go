// Package cpu runs the operations of package hardware on the processor, with
// the best instruction set it has or the one that is asked for.
package cpu

// #cgo CFLAGS: -O3 -std=gnu11 -Wall -Wextra -I${SRCDIR}/../table
// #cgo LDFLAGS: -lm
// #include "support.h"
import "C"

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// UnavailableError says that this machine or build lacks an instruction set.
type UnavailableError struct {
	Want      string
	Available []string // best first
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("cpu: instruction set %q is not available: want one of %s", e.Want, strings.Join(e.Available, ", "))
}

// backend is one table of kernels.
type backend struct {
	kernels *C.trivium_kernels
	name    string
}

var _ hardware.Backend = (*backend)(nil)

// Open gives the kernels of an instruction set by its name, "" for the best
// that this machine has.
func Open(isa string) (hardware.Backend, error) {
	tables := supported()
	if isa == "" {
		return newBackend(tables[0]), nil
	}
	for _, t := range tables {
		if C.GoString(t.name) == isa {
			return newBackend(t), nil
		}
	}
	return nil, &UnavailableError{Want: isa, Available: Available()}
}

// Available names the instruction sets that Open takes here, best first. The
// last is "serial", which is for checking the others.
func Available() []string {
	var names []string
	for _, t := range supported() {
		names = append(names, C.GoString(t.name))
	}
	return names
}

func newBackend(t *C.trivium_kernels) *backend {
	return &backend{kernels: t, name: "cpu:" + C.GoString(t.name)}
}

func supported() []*C.trivium_kernels {
	var count C.int
	first := C.trivium_tables(&count)
	tables := slices.Clone(unsafe.Slice((**C.trivium_kernels)(unsafe.Pointer(first)), int(count)))
	tables = slices.DeleteFunc(tables, func(t *C.trivium_kernels) bool { return C.trivium_supported(t) == 0 })
	slices.SortFunc(tables, func(a, b *C.trivium_kernels) int { return cmp.Compare(b.rank, a.rank) })
	return tables
}

func (b *backend) Name() string { return b.name }
