package cuda

/*
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"sync"
	"unsafe"
)

// Device is one GPU with its compiled kernels. Its methods may be called from
// any goroutine. Close releases what it loaded.
type Device struct {
	Ordinal    int
	Name       string
	Driver     int // CUDA version of the driver, such as 13000
	Capability int // compute capability times ten
	Processors int
	Shared     int // bytes of shared memory that one block may take

	driver   *C.trivium_driver
	context  unsafe.Pointer
	compiler *Compiler
	mu       sync.Mutex
	modules  map[string]unsafe.Pointer // by Kernel.String
	entries  map[string]unsafe.Pointer // by Kernel.String and entry
}

// Open opens a GPU: libcuda, libnvrtc and a device of capability 8.0 or more
// must be there, or a NotAvailableError says which is not.
func Open(o Options, ordinal int) (*Device, error) {
	driver, version, devices, err := openDriver()
	if err != nil {
		return nil, err
	}
	d := &Device{Ordinal: ordinal, Driver: version, driver: driver, modules: map[string]unsafe.Pointer{}, entries: map[string]unsafe.Pointer{}}
	if ordinal < 0 || ordinal >= devices {
		return nil, &NotAvailableError{Missing: "device", Reason: fmt.Sprintf("device %d of %d", ordinal, devices)}
	}
	if err := d.describe(); err != nil {
		return nil, err
	}
	if d.Capability < 80 {
		return nil, &NotAvailableError{Missing: "device", Reason: fmt.Sprintf("%s has compute capability %d.%d: want 8.0 or more", d.Name, d.Capability/10, d.Capability%10)}
	}
	if d.compiler, err = OpenCompiler(o); err != nil {
		return nil, err
	}
	return d, d.check("cuDevicePrimaryCtxRetain", C.trivium_cuda_context(driver, C.int(ordinal), &d.context))
}

// openDriver finds libcuda, and says which CUDA it speaks and how many devices it has.
func openDriver() (driver *C.trivium_driver, version, devices int, err error) {
	library, err := open("libcuda", driverNames(), func(path, message *C.char, size C.size_t) unsafe.Pointer {
		return unsafe.Pointer(C.trivium_driver_open(path, message, size))
	})
	if err != nil {
		return nil, 0, 0, err
	}
	driver = (*C.trivium_driver)(library)
	var v, n C.int
	if rc := C.trivium_cuda_init(driver, &v, &n); rc != 0 {
		return nil, 0, 0, &NotAvailableError{Missing: "device", Reason: (&Device{driver: driver}).check("cuInit", rc).Error()}
	}
	return driver, int(v), int(n), nil
}

func (d *Device) describe() error {
	const processors, major, minor, shared = 16, 75, 76, 97 // CUdevice_attribute
	var name [96]C.char
	var values [4]C.int
	which := [4]C.int{processors, major, minor, shared}
	rc := C.trivium_cuda_device(d.driver, C.int(d.Ordinal), &name[0], C.int(len(name)), &values[0], &which[0], C.int(len(values)))
	if err := d.check("cuDeviceGetAttribute", rc); err != nil {
		return err
	}
	d.Name, d.Processors, d.Capability, d.Shared = C.GoString(&name[0]), int(values[0]), int(values[1])*10+int(values[2]), int(values[3])
	return nil
}

// Arch is what kernels are compiled for: Hopper's own instructions need "sm_90a".
func (d *Device) Arch() string {
	if d.Capability == 90 {
		return "sm_90a"
	}
	return fmt.Sprintf("sm_%d", d.Capability)
}

// Compiler is the one this device uses.
func (d *Device) Compiler() *Compiler { return d.compiler }

// Close unloads the kernels and lets the context go. Queues must be closed before.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var first error
	for name, module := range d.modules {
		if err := d.check("cuModuleUnload", C.trivium_cuda_unload(d.driver, d.context, module)); err != nil && first == nil {
			first = err
		}
		delete(d.modules, name)
	}
	if err := d.check("cuDevicePrimaryCtxRelease", C.trivium_cuda_release(d.driver, C.int(d.Ordinal))); err != nil && first == nil {
		first = err
	}
	return first
}

func (d *Device) check(call string, code C.int) error {
	if code == 0 {
		return nil
	}
	return &DriverError{Call: call, Code: int(code), Text: C.GoString(C.trivium_cuda_error(d.driver, code))}
}

// leastShared is the dynamic shared memory that every launch may ask for that
// asks for some.
const leastShared = 32 << 10

// function loads an entry of a kernel, compiling it when it must; limit is
// the most dynamic shared memory that its launches ask for.
func (d *Device) function(k Kernel, entry string, limit int) (unsafe.Pointer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f, ok := d.entries[k.String()+entry]; ok {
		return f, nil
	}
	if limit > 0 { // a later launch may ask for more, which is free up to here
		limit = max(limit, leastShared)
	}
	module, ok := d.modules[k.String()]
	if !ok {
		cubin, err := d.compiler.Compile(k, d.Arch())
		if err != nil {
			return nil, err
		}
		image := C.CBytes(cubin)
		defer C.free(image)
		if err := d.check("cuModuleLoadData", C.trivium_cuda_load(d.driver, d.context, image, &module)); err != nil {
			return nil, err
		}
		d.modules[k.String()] = module
	}
	name := C.CString(entry)
	defer C.free(unsafe.Pointer(name))
	var f unsafe.Pointer
	if err := d.check("cuModuleGetFunction "+entry, C.trivium_cuda_function(d.driver, d.context, module, name, C.int(limit), &f)); err != nil {
		return nil, err
	}
	d.entries[k.String()+entry] = f
	return f, nil
}

// Address is memory on a device.
type Address uint64

// Alloc takes device memory; the caller frees it.
func (d *Device) Alloc(size int) (Address, error) {
	var a C.uint64_t
	err := d.check("cuMemAlloc", C.trivium_cuda_alloc(d.driver, d.context, &a, C.size_t(max(size, 1))))
	return Address(a), err
}

// Free returns device memory; 0 is allowed.
func (d *Device) Free(a Address) error {
	if a == 0 {
		return nil
	}
	return d.check("cuMemFree", C.trivium_cuda_free(d.driver, d.context, C.uint64_t(a)))
}

// Upload copies host bytes to the device and waits.
func (d *Device) Upload(to Address, from []byte) error {
	if len(from) == 0 {
		return nil
	}
	return d.check("cuMemcpyHtoD", C.trivium_cuda_upload(d.driver, d.context, C.uint64_t(to), unsafe.Pointer(&from[0]), C.size_t(len(from))))
}

// Download copies device bytes to the host and waits.
func (d *Device) Download(to []byte, from Address) error {
	if len(to) == 0 {
		return nil
	}
	return d.check("cuMemcpyDtoH", C.trivium_cuda_download(d.driver, d.context, unsafe.Pointer(&to[0]), C.uint64_t(from), C.size_t(len(to))))
}
