package cuda

/*
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strings"
	"unsafe"
)

// Compiler turns kernels into machine code. It is safe for concurrent use.
type Compiler struct {
	nvrtc   *C.trivium_nvrtc
	version string
	cache   cache
	headers []header
}

type header struct{ name, body string }

// CompileError is source that the compiler refused.
type CompileError struct {
	Kernel Kernel
	Arch   string
	Log    string
}

func (e *CompileError) Error() string {
	return fmt.Sprintf("cuda: %s does not compile for %s: %s", e.Kernel, e.Arch, strings.TrimSpace(e.Log))
}

// OpenCompiler finds libnvrtc; a NotAvailableError says why it cannot.
func OpenCompiler(o Options) (*Compiler, error) {
	library, err := open("libnvrtc", candidates(o.NVRTC), func(path, message *C.char, size C.size_t) unsafe.Pointer {
		return unsafe.Pointer(C.trivium_nvrtc_open(path, message, size))
	})
	if err != nil {
		return nil, err
	}
	nvrtc := (*C.trivium_nvrtc)(library)
	var major, minor C.int
	if rc := C.trivium_nvrtc_version(nvrtc, &major, &minor); rc != 0 {
		return nil, &NotAvailableError{Missing: "libnvrtc", Reason: C.GoString(C.trivium_nvrtc_error(nvrtc, rc))}
	}
	headers, err := readHeaders()
	if err != nil {
		return nil, err
	}
	return &Compiler{nvrtc: nvrtc, version: fmt.Sprintf("%d.%d", major, minor), cache: cache{o.CacheDir}, headers: headers}, nil
}

// Version is libnvrtc's, such as "13.2".
func (c *Compiler) Version() string { return c.version }

func readHeaders() ([]header, error) {
	entries, err := fs.ReadDir(sources, "src")
	if err != nil {
		return nil, err
	}
	var headers []header
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".cu") {
			continue
		}
		body, err := fs.ReadFile(sources, "src/"+e.Name())
		if err != nil {
			return nil, err
		}
		headers = append(headers, header{e.Name(), string(body)})
	}
	return headers, nil
}

// Compile returns the machine code of a kernel, from the cache when it holds it.
func (c *Compiler) Compile(k Kernel, arch string) ([]byte, error) {
	if !k.For(arch) {
		return nil, fmt.Errorf("cuda: %s is not for %s", k, arch)
	}
	source, err := fs.ReadFile(sources, "src/"+k.Source)
	if err != nil {
		return nil, fmt.Errorf("cuda: no kernel source: %w", err)
	}
	options := []string{"--gpu-architecture=" + arch, "--std=c++17"}
	for _, d := range k.Defines {
		options = append(options, "-D"+d)
	}
	key := c.key(source, options)
	if cubin, ok := c.cache.load(key); ok {
		return cubin, nil
	}
	cubin, err := c.build(k, arch, string(source), options)
	if err != nil {
		return nil, err
	}
	return cubin, c.cache.store(key, cubin)
}

// key names everything the machine code depends on.
func (c *Compiler) key(source []byte, options []string) string {
	h := sha256.New()
	for _, part := range append([]string{c.version, string(source)}, options...) {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	for _, x := range c.headers {
		fmt.Fprintf(h, "%d:%s%d:%s", len(x.name), x.name, len(x.body), x.body)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (c *Compiler) build(k Kernel, arch, source string, options []string) ([]byte, error) {
	names, bodies := make([]string, len(c.headers)), make([]string, len(c.headers))
	for i, x := range c.headers {
		names[i], bodies[i] = x.name, x.body
	}
	text, name := C.CString(source), C.CString(k.Source)
	defer C.free(unsafe.Pointer(text))
	defer C.free(unsafe.Pointer(name))
	bodyList, nameList, optionList := newStrings(bodies), newStrings(names), newStrings(options)
	defer bodyList.free()
	defer nameList.free()
	defer optionList.free()
	var cubin, log *C.char
	var size C.size_t
	rc := C.trivium_nvrtc_compile(c.nvrtc, text, name, C.int(len(names)), bodyList.data, nameList.data,
		C.int(len(options)), optionList.data, &cubin, &size, &log)
	defer C.free(unsafe.Pointer(cubin))
	defer C.free(unsafe.Pointer(log))
	if rc != 0 || cubin == nil {
		reason := C.GoString(C.trivium_nvrtc_error(c.nvrtc, rc))
		if log != nil {
			reason += ": " + C.GoString(log)
		}
		return nil, &CompileError{Kernel: k, Arch: arch, Log: reason}
	}
	return C.GoBytes(unsafe.Pointer(cubin), C.int(size)), nil
}

// stringList is an array of C strings; free releases it.
type stringList struct {
	data  **C.char
	count int
}

func newStrings(list []string) stringList {
	s := stringList{(**C.char)(C.calloc(C.size_t(len(list)+1), C.size_t(unsafe.Sizeof(uintptr(0))))), len(list)}
	for i, x := range list {
		unsafe.Slice(s.data, s.count)[i] = C.CString(x)
	}
	return s
}

func (s stringList) free() {
	for _, x := range unsafe.Slice(s.data, s.count) {
		C.free(unsafe.Pointer(x))
	}
	C.free(unsafe.Pointer(s.data))
}
