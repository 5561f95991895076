package cuda

/*
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"sync"
	"unsafe"
)

// HandleSize is the bytes of a CUipcMemHandle.
const HandleSize = 64

// openMemory maps memory that another process exported.
func (d *Device) openMemory(handle string) (Address, error) {
	h := []byte(handle)
	var a C.uint64_t
	err := d.check("cuIpcOpenMemHandle", C.trivium_cuda_memory_open(d.driver, d.context, unsafe.Pointer(&h[0]), &a))
	return Address(a), err
}

func (d *Device) closeMemory(a Address) error {
	return d.check("cuIpcCloseMemHandle", C.trivium_cuda_memory_close(d.driver, d.context, C.uint64_t(a)))
}

// Fence is a uint32 in device memory that grows. It is reached when the number
// is Value or more. Processes order their work by it: a round trip between two
// of them takes 10 us of the device, where events of CUDA take 280.
type Fence struct {
	At    Address
	Value uint32
}

// await makes the work that is queued from now on wait until a fence is reached.
func (q *Queue) await(f Fence) error {
	rc := C.trivium_cuda_value_await(q.device.driver, q.device.context, C.uint64_t(f.At), C.uint32_t(f.Value), q.stream)
	return q.device.check("cuStreamWaitValue32", rc)
}

// reach lets a fence be reached behind the work that is queued.
func (q *Queue) reach(f Fence) error {
	rc := C.trivium_cuda_value_write(q.device.driver, q.device.context, C.uint64_t(f.At), C.uint32_t(f.Value), q.stream)
	return q.device.check("cuStreamWriteValue32", rc)
}

// Upload copies host bytes to the device behind the work that is queued. The
// bytes may change when it returns.
func (q *Queue) Upload(to Address, from []byte) error {
	if len(from) == 0 {
		return nil
	}
	rc := C.trivium_cuda_upload_async(q.device.driver, q.device.context, C.uint64_t(to), unsafe.Pointer(&from[0]), C.size_t(len(from)), q.stream)
	return q.device.check("cuMemcpyHtoDAsync", rc)
}

// Download copies device bytes to the host behind the work that is queued, and waits.
func (q *Queue) Download(to []byte, from Address) error {
	if len(to) == 0 {
		return nil
	}
	rc := C.trivium_cuda_download_async(q.device.driver, q.device.context, unsafe.Pointer(&to[0]), C.uint64_t(from), C.size_t(len(to)), q.stream)
	if err := q.device.check("cuMemcpyDtoHAsync", rc); err != nil {
		return err
	}
	return q.Wait()
}

// handles keeps what was opened by handle, so that each is opened once. The
// zero value is not ready: see newHandles.
type handles[T any] struct {
	mu    sync.Mutex
	open  func(handle string) (T, error)
	close func(T) error
	held  map[string]T
}

func newHandles[T any](open func(string) (T, error), closeOne func(T) error) *handles[T] {
	return &handles[T]{open: open, close: closeOne, held: map[string]T{}}
}

// get opens a handle unless it is open.
func (h *handles[T]) get(handle []byte) (T, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if value, ok := h.held[string(handle)]; ok {
		return value, nil
	}
	var none T
	if len(handle) != HandleSize {
		return none, fmt.Errorf("cuda: a handle of %d bytes: want %d", len(handle), HandleSize)
	}
	value, err := h.open(string(handle))
	if err == nil {
		h.held[string(handle)] = value
	}
	return value, err
}

// drop closes a handle; one that is not open is passed over.
func (h *handles[T]) drop(handle []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	value, ok := h.held[string(handle)]
	if !ok {
		return nil
	}
	delete(h.held, string(handle))
	return h.close(value)
}

func (h *handles[T]) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}
