package tensor

import (
	"fmt"
	"strconv"
	"strings"
)

// Device names where a tensor's memory lies: "cpu" or "cuda:0".
type Device string

// CPU is host memory.
const CPU Device = "cpu"

// CUDA is the kind of NVIDIA GPUs; the GPUs are "cuda:0", "cuda:1", ...
const CUDA = "cuda"

// CUDADevice is the GPU with this number.
func CUDADevice(ordinal int) Device { return Device(CUDA + ":" + strconv.Itoa(ordinal)) }

// Kind is the device without its number: "cpu" or "cuda".
func (d Device) Kind() string {
	kind, _, _ := strings.Cut(string(d), ":")
	return kind
}

// Ordinal is the number of an accelerator.
func (d Device) Ordinal() (int, error) {
	_, number, _ := strings.Cut(string(d), ":")
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("device %q: want a number behind the colon, such as %q", string(d), CUDADevice(0))
	}
	return n, nil
}

// Block is memory of a device that its owner exported to other processes.
type Block struct {
	Device Device
	UUID   []byte // of the device, whatever number it has in either process
	Handle []byte // CUipcMemHandle
	Size   int64  // bytes
}

// Fence is a number in device memory that grows: processes order their work on
// a device by it. It is reached when the number is Value or more.
type Fence struct {
	Device  Device
	Address uintptr // of a uint32
	Value   uint32
}
