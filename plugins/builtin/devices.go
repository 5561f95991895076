package main

import (
	"errors"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/plugins/sdk"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// devices lets the host's memory of NVIDIA GPUs into this process.
type devices struct{ lanes *cuda.Lanes }

var _ sdk.Devices = devices{}

func (d devices) Open(block tensor.Block) (uintptr, tensor.Device, error) {
	lane, ordinal, err := d.lane(block)
	if err != nil {
		return 0, "", kernel.DeviceError(err)
	}
	address, err := lane.OpenMemory(block.Handle)
	if err != nil {
		return 0, "", kernel.DeviceError(err)
	}
	return uintptr(address), tensor.CUDADevice(ordinal), nil
}

func (d devices) lane(block tensor.Block) (*cuda.Lane, int, error) {
	if kind := block.Device.Kind(); kind != tensor.CUDA {
		return nil, 0, core.Errorf(core.ErrDeviceUnavailable, "memory of %s: want %s or %s", block.Device, tensor.CPU, tensor.CUDA)
	}
	ordinal, err := d.lanes.Ordinal(block.UUID)
	if err != nil {
		return nil, 0, err
	}
	lane, err := d.lanes.Lane(ordinal)
	return lane, ordinal, err
}

func (d devices) Close(handles [][]byte) error {
	var first error
	for _, lane := range d.lanes.Opened() {
		for _, handle := range handles {
			first = errors.Join(first, lane.CloseMemory(handle))
		}
	}
	return kernel.DeviceError(first)
}

func (d devices) List() []core.Device {
	found := d.lanes.Describe()
	list := make([]core.Device, len(found))
	for i, f := range found {
		list[i] = core.Device{Model: f.Model, Driver: f.Driver, Compiler: f.Compiler, Cache: f.Cache}
		if f.Missing != nil {
			typed := core.AsError(kernel.DeviceError(f.Missing))
			list[i].Missing, list[i].Hint = typed.Message, typed.Hint
			continue
		}
		list[i].Name = string(tensor.CUDADevice(f.Ordinal))
	}
	return list
}
