package cuda

/*
#include "shim.h"
*/
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"unsafe"
)

// Lanes opens the machine's GPUs when they are first used and keeps them. It is
// safe for concurrent use.
type Lanes struct {
	options Options
	mu      sync.Mutex
	open    map[int]*Lane
	uuids   [][]byte
}

// NewLanes opens nothing yet.
func NewLanes(o Options) *Lanes { return &Lanes{options: o, open: map[int]*Lane{}} }

// Lane is the GPU with this number; a NotAvailableError says why there is none.
func (l *Lanes) Lane(ordinal int) (*Lane, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lane, ok := l.open[ordinal]; ok {
		return lane, nil
	}
	device, err := Open(l.options, ordinal)
	if err != nil {
		return nil, err
	}
	queue, err := device.NewQueue(nil)
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	lane := &Lane{Device: device, queue: queue,
		memory: newHandles(device.openMemory, device.closeMemory)}
	l.open[ordinal] = lane
	return lane, nil
}

// Opened are the lanes that were used.
func (l *Lanes) Opened() []*Lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lanes []*Lane
	for _, lane := range l.open {
		lanes = append(lanes, lane)
	}
	return lanes
}

// Ordinal is the number here of the GPU with this UUID: processes with other
// environments count them differently.
func (l *Lanes) Ordinal(uuid []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.uuids == nil {
		driver, _, devices, err := openDriver()
		if err != nil {
			return 0, err
		}
		for i := range devices {
			var id [16]C.char
			if rc := C.trivium_cuda_uuid(driver, C.int(i), &id[0]); rc != 0 {
				return 0, (&Device{driver: driver}).check("cuDeviceGetUuid", rc)
			}
			l.uuids = append(l.uuids, C.GoBytes(unsafe.Pointer(&id[0]), 16))
		}
	}
	for i, id := range l.uuids {
		if bytes.Equal(id, uuid) {
			return i, nil
		}
	}
	return 0, &NotAvailableError{Missing: "device", Reason: fmt.Sprintf("none of %d devices has the UUID %x", len(l.uuids), uuid)}
}

// Description is what a person wants to know of a GPU, or what is missing to use it.
type Description struct {
	Ordinal                        int
	Model, Driver, Compiler, Cache string
	Missing                        error
}

// Describe opens every GPU.
func (l *Lanes) Describe() []Description {
	_, version, devices, err := openDriver()
	if err != nil {
		return []Description{{Missing: err}}
	}
	driver := fmt.Sprintf("CUDA %d.%d", version/1000, version%1000/10)
	if devices == 0 {
		return []Description{{Driver: driver, Missing: &NotAvailableError{Missing: "device", Reason: "the driver has none"}}}
	}
	all := make([]Description, devices)
	for i := range all {
		all[i] = Description{Ordinal: i, Driver: driver, Cache: l.options.CacheDir}
		lane, err := l.Lane(i)
		if err != nil {
			all[i].Missing = err
			continue
		}
		d := lane.Device
		all[i].Model = fmt.Sprintf("%s, compute capability %d.%d", d.Name, d.Capability/10, d.Capability%10)
		all[i].Compiler = "NVRTC " + d.compiler.Version()
	}
	return all
}

// Lane is a GPU with one queue, on which all its work runs in order, and what
// other processes let it see.
type Lane struct {
	Device *Device

	mu     sync.Mutex
	queue  *Queue
	memory *handles[Address]
	work   Work
}

// OpenMemory gives the address of memory that another process exported. It stays
// open until CloseMemory.
func (l *Lane) OpenMemory(handle []byte) (Address, error) { return l.memory.get(handle) }

// CloseMemory lets go of memory once no work uses it; a handle that is not known
// is passed over.
func (l *Lane) CloseMemory(handle []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.queue.Wait(), l.memory.drop(handle))
}

// Work is what one call starts on a lane.
type Work struct {
	*Queue
	arena     Address
	size, end int       // of the arena, and of what the call has taken of it
	outgrown  []Address // arenas of this call that were too small
}

// arenaAlign is the alignment of scratch memory.
const arenaAlign = 256

// Scratch is device memory that the call may use until its work is done.
func (w *Work) Scratch(size int) (Address, error) {
	size = ceilDiv(max(size, 1), arenaAlign) * arenaAlign
	if w.end+size > w.size {
		grown := max(size, 2*w.size, 1<<20)
		a, err := w.device.Alloc(grown)
		if err != nil {
			return 0, err
		}
		if w.arena != 0 {
			w.outgrown = append(w.outgrown, w.arena)
		}
		w.arena, w.size, w.end = a, grown, 0
	}
	at := w.arena + Address(w.end)
	w.end += size
	return at, nil
}

// restart gives all scratch memory back to the next call. Work of the call
// before may still use it, which the order of the queue takes care of.
func (w *Work) restart() error {
	w.end = 0
	if len(w.outgrown) == 0 {
		return nil
	}
	if err := w.Wait(); err != nil {
		return err
	}
	for len(w.outgrown) > 0 {
		last := len(w.outgrown) - 1
		if err := w.device.Free(w.outgrown[last]); err != nil {
			return err
		}
		w.outgrown = w.outgrown[:last]
	}
	return nil
}

// Do lets start put work on the lane, one call at a time. The work waits for the
// fence ready, and done is reached behind it; nil: begin at once, return when the
// work is done. After an error no work is under way.
func (l *Lane) Do(ready, done *Fence, start func(*Work) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.do(ready, done, start)
	if err != nil || done == nil {
		err = errors.Join(err, l.queue.Wait())
	}
	return err
}

func (l *Lane) do(ready, done *Fence, start func(*Work) error) error {
	l.work.Queue = l.queue
	if err := l.work.restart(); err != nil {
		return err
	}
	if ready != nil {
		if err := l.queue.await(*ready); err != nil {
			return err
		}
	}
	if err := start(&l.work); err != nil {
		return err
	}
	if done == nil {
		return nil
	}
	return l.queue.reach(*done)
}
