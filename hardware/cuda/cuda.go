// Package cuda runs attention and the FlexPrefill index on NVIDIA GPUs. The
// driver (libcuda) and the compiler (libnvrtc) are opened at run time, so
// nothing is needed to build this package; kernels are embedded as source,
// compiled for the device once and kept on disk. Compiling needs no GPU.
package cuda

/*
#cgo CFLAGS: -std=c11 -O2
#cgo linux LDFLAGS: -ldl
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"
)

// Options says where things are. The zero value searches the system.
type Options struct {
	NVRTC    string // libnvrtc, or a folder that holds it at any depth of two; empty: the system's
	CacheDir string // compiled kernels; empty: not kept
}

// FromEnvironment reads TRIVIUM_NVRTC and takes the user's cache folder.
func FromEnvironment() Options {
	o := Options{NVRTC: os.Getenv("TRIVIUM_NVRTC")}
	if dir, err := os.UserCacheDir(); err == nil {
		o.CacheDir = filepath.Join(dir, "trivium", "cubin")
	}
	return o
}

// NotAvailableError says which part of CUDA this machine lacks.
type NotAvailableError struct {
	Missing string // "libcuda", "libnvrtc" or "device"
	Reason  string
}

func (e *NotAvailableError) Error() string {
	return fmt.Sprintf("cuda is not available: no %s: %s", e.Missing, e.Reason)
}

// DriverError is a CUresult.
type DriverError struct {
	Call string
	Code int
	Text string
}

func (e *DriverError) Error() string { return fmt.Sprintf("%s: %s (%d)", e.Call, e.Text, e.Code) }

// Sticky reports that the context is lost: every further call of this process
// fails, and only a new process helps.
func (e *DriverError) Sticky() bool {
	switch e.Code {
	case 700, 702, 710, 713, 714, 715, 716, 717, 718, 719: // illegal address .. launch failure
		return true
	}
	return false
}

// OutOfMemory reports that the device has no memory left.
func (e *DriverError) OutOfMemory() bool { return e.Code == 2 }

func driverNames() []string { return []string{"libcuda.so.1", "libcuda.so"} }

func nvrtcNames() []string { return []string{"libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"} }

// candidates are the paths to try for libnvrtc.
func candidates(at string) []string {
	if at == "" {
		return nvrtcNames()
	}
	info, err := os.Stat(at)
	if err != nil || !info.IsDir() {
		return []string{at}
	}
	var paths []string
	for _, below := range []string{".", "lib", "*/lib", "*/*/lib"} {
		found, _ := filepath.Glob(filepath.Join(at, below, "libnvrtc.so*"))
		paths = append(paths, found...)
	}
	return paths
}

// open tries paths in turn; load returns nil and fills the message when one fails.
func open(missing string, paths []string, load func(path, message *C.char, size C.size_t) unsafe.Pointer) (unsafe.Pointer, error) {
	message := (*C.char)(C.calloc(1, messageSize))
	defer C.free(unsafe.Pointer(message))
	reasons := []string{}
	for _, path := range paths {
		c := C.CString(path)
		library := load(c, message, messageSize)
		C.free(unsafe.Pointer(c))
		if library != nil {
			return library, nil
		}
		reasons = append(reasons, C.GoString(message))
	}
	if len(reasons) == 0 {
		reasons = []string{"the folder given holds none"}
	}
	return nil, &NotAvailableError{Missing: missing, Reason: strings.Join(reasons, "; ")}
}

const messageSize = 512
