package host

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// forgetTime bounds how long a plugin is asked to let go of device memory.
const forgetTime = 10 * time.Second

// DeviceMemory is the device memory that this process has exported, by address.
// It is safe for concurrent use.
type DeviceMemory struct {
	mu     sync.RWMutex
	blocks []exported // by base
}

type exported struct {
	tensor.Block
	base uintptr
}

// Share adds a block that starts at base. Blocks that it overlaps were freed
// without a word: their handles are returned, for Host.ForgetDevice.
func (m *DeviceMemory) Share(base uintptr, block tensor.Block) (stale [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := base + uintptr(block.Size)
	m.blocks = slices.DeleteFunc(m.blocks, func(b exported) bool {
		overlaps := b.base < end && base < b.base+uintptr(b.Size)
		if overlaps {
			stale = append(stale, b.Handle)
		}
		return overlaps
	})
	at, _ := slices.BinarySearchFunc(m.blocks, base, compareBase)
	m.blocks = slices.Insert(m.blocks, at, exported{block, base})
	return stale
}

// Forget removes the block that starts at base and returns its handle, nil if
// there is none.
func (m *DeviceMemory) Forget(base uintptr) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, found := slices.BinarySearchFunc(m.blocks, base, compareBase)
	if !found {
		return nil
	}
	handle := m.blocks[at].Handle
	m.blocks = slices.Delete(m.blocks, at, at+1)
	return handle
}

// find is the block that span bytes at an address lie in, and where in it.
func (m *DeviceMemory) find(device tensor.Device, address uintptr, span int64) (*tensor.Block, int64, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	at, found := slices.BinarySearchFunc(m.blocks, address, compareBase)
	if !found {
		at--
	}
	if at < 0 {
		return nil, 0, false
	}
	b := m.blocks[at]
	offset := int64(address - b.base)
	if b.Device != device || span > b.Size || offset > b.Size-span {
		return nil, 0, false
	}
	return &b.Block, offset, true
}

func compareBase(b exported, base uintptr) int {
	switch {
	case b.base < base:
		return -1
	case b.base > base:
		return 1
	}
	return 0
}

// ForgetDevice tells the plugins that run to let go of blocks of device memory.
// A plugin that cannot answer loses nothing but the memory it holds on to.
func (h *Host) ForgetDevice(ctx context.Context, handles [][]byte) {
	if len(handles) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, forgetTime)
	defer cancel()
	for _, s := range h.services {
		session := s.verified.Load()
		if s.kind != core.Attention || session == nil || session.Err() != nil {
			continue
		}
		if _, err := pb.NewAttentionServiceClient(session.Conn).Forget(ctx, &pb.ForgetRequest{Handles: handles}, callOptions...); err != nil {
			h.options.Log.WithField(core.LogPlugin, s.plugin).Debugf("letting go of device memory: %v", err)
		}
	}
}

// onDevice refers to a tensor in exported device memory.
func (c *call) onDevice(name string, t *tensor.Tensor) (*pb.TensorRef, error) {
	memory := c.service.host.options.DeviceMemory
	if memory != nil {
		if block, offset, ok := memory.find(t.Device(), uintptr(t.Pointer()), t.Span()); ok {
			return wire.EncodeDeviceTensor(t, block, offset), nil
		}
	}
	return nil, core.Errorf(core.ErrDeviceUnavailable, "%s is on %s, in memory that was not exported to plugins", name, t.Device())
}

// fences refers to the fences of a request.
func (c *call) fences(req *core.AttentionRequest, m *pb.AttentionRequest) (err error) {
	if m.Ready, err = c.fence("ready", req.Ready); err != nil {
		return err
	}
	m.Done, err = c.fence("done", req.Done)
	return err
}

func (c *call) fence(name string, f *tensor.Fence) (*pb.Fence, error) {
	if f == nil {
		return nil, nil
	}
	if memory := c.service.host.options.DeviceMemory; memory != nil {
		if block, offset, ok := memory.find(f.Device, f.Address, 4); ok {
			return wire.EncodeFence(f, block, offset), nil
		}
	}
	return nil, core.Errorf(core.ErrDeviceUnavailable, "the fence %s is on %s, in memory that was not exported to plugins", name, f.Device)
}

// devices asks a running plugin for its accelerators.
func (s *service) devices(ctx context.Context, session *Session) []core.Device {
	reply, err := pb.NewCatalogServiceClient(session.Conn).Devices(ctx, &pb.DevicesRequest{}, callOptions...)
	if err != nil { // a plugin of before there were devices
		return nil
	}
	devices := make([]core.Device, len(reply.GetDevices()))
	for i, d := range reply.GetDevices() {
		devices[i] = wire.DecodeDevice(d)
	}
	return devices
}
