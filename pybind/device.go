package pybind

import (
	"context"

	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/host"
)

// deviceMemory is what this process has exported: every engine uses it.
var deviceMemory = new(host.DeviceMemory)

// deviceBlock is a block of device memory that Python exported.
type deviceBlock struct {
	Device string `json:"device"`
	UUID   []byte `json:"uuid"`
	Base   int64  `json:"base"`
	Size   int64  `json:"size"`
	Handle []byte `json:"handle"`
}

// fence is a number in device memory that Python exported.
type fence struct {
	Device  string `json:"device"`
	Address int64  `json:"address"`
	Value   uint32 `json:"value"`
}

func (f *fence) fence() *tensor.Fence {
	if f == nil {
		return nil
	}
	return &tensor.Fence{Device: tensor.Device(f.Device), Address: uintptr(f.Address), Value: f.Value}
}

// ShareDevice tells of a block of device memory that plugins may open, as JSON.
// It gives its base.
func ShareDevice(block string) (base int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	var in deviceBlock
	if err := unmarshal(block, &in); err != nil {
		return 0, err
	}
	stale := deviceMemory.Share(uintptr(in.Base), tensor.Block{Device: tensor.Device(in.Device), UUID: in.UUID, Handle: in.Handle, Size: in.Size})
	forget(stale)
	return in.Base, nil
}

// ForgetDevice lets every plugin go of blocks that were freed, by their bases as
// a JSON list. It gives how many were known.
func ForgetDevice(bases string) (count int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	var in []int64
	if err := unmarshal(bases, &in); err != nil {
		return 0, err
	}
	var stale [][]byte
	for _, base := range in {
		if handle := deviceMemory.Forget(uintptr(base)); handle != nil {
			stale = append(stale, handle)
		}
	}
	forget(stale)
	return int64(len(stale)), nil
}

func forget(handles [][]byte) {
	if len(handles) == 0 {
		return
	}
	for _, e := range engines.all() {
		e.host.ForgetDevice(context.Background(), handles)
	}
}
