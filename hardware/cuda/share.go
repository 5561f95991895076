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

// HandleSize is the bytes of a CUipcMemHandle and of a CUipcEventHandle.
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

// event is a CUevent that another process made.
type event unsafe.Pointer

func (d *Device) openEvent(handle string) (event, error) {
	h := []byte(handle)
	var e unsafe.Pointer
	err := d.check("cuIpcOpenEventHandle", C.trivium_cuda_event_open(d.driver, d.context, unsafe.Pointer(&h[0]), &e))
	return event(e), err
}

func (d *Device) closeEvent(e event) error {
	return d.check("cuEventDestroy", C.trivium_cuda_event_free(d.driver, d.context, unsafe.Pointer(e)))
}

// await makes the work that is queued from now on wait for an event of another process.
func (q *Queue) await(e event) error {
	return q.device.check("cuStreamWaitEvent", C.trivium_cuda_event_await(q.device.driver, q.device.context, unsafe.Pointer(e), q.stream))
}

// record lets an event of another process happen behind the work that is queued.
func (q *Queue) record(e event) error {
	return q.device.check("cuEventRecord", C.trivium_cuda_event_record(q.device.driver, q.device.context, unsafe.Pointer(e), q.stream))
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
	most  int // how many are kept; 0: all
}

func newHandles[T any](most int, open func(string) (T, error), close func(T) error) *handles[T] {
	return &handles[T]{open: open, close: close, held: map[string]T{}, most: most}
}

// get opens a handle unless it is open. Where only some are kept and there are
// too many, all the others are closed: whoever uses them opens them again.
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
	if h.most > 0 && len(h.held) >= h.most {
		if err := h.dropAll(); err != nil {
			return none, err
		}
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

func (h *handles[T]) dropAll() error {
	var first error
	for handle, value := range h.held {
		delete(h.held, handle)
		if err := h.close(value); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (h *handles[T]) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}
