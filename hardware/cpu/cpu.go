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

// backend is one table of kernels. Operations that it lacks come from the next
// one down.
type backend struct {
	kernels *C.trivium_kernels
	pooling *C.trivium_kernels
	summing *C.trivium_kernels
	name    string
}

var _ hardware.Backend = (*backend)(nil)

// Open gives the kernels of an instruction set by its name, "" for the best
// that this machine has.
func Open(isa string) (hardware.Backend, error) {
	tables := supported()
	for i, t := range tables {
		if isa == "" || C.GoString(t.name) == isa {
			return newBackend(tables[i:]), nil
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

// newBackend takes the first of the tables, which are in falling order.
func newBackend(tables []*C.trivium_kernels) *backend {
	with := func(has func(*C.trivium_kernels) bool) *C.trivium_kernels {
		return tables[slices.IndexFunc(tables, has)]
	}
	return &backend{
		kernels: tables[0],
		pooling: with(func(t *C.trivium_kernels) bool { return t.pool != nil }),
		summing: with(func(t *C.trivium_kernels) bool { return t.weighted_sum != nil }),
		name:    "cpu:" + C.GoString(tables[0].name),
	}
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
