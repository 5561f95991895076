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
