package sdk

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// announceTime bounds the wait for memory that a message refers to. The host
// announces before it calls, so the wait is for two threads to be scheduled.
const announceTime = 5 * time.Second

// memory is what one call refers to, held until release.
type memory struct {
	ctx     context.Context
	cancel  context.CancelFunc
	table   *shm.Table
	devices Devices
	views   []*shm.View
	files   map[fileKey]openFile
}

var _ wire.Memory = (*memory)(nil)

type fileKey struct {
	id       uint64
	writable bool
}

type openFile struct {
	file  *os.File
	start int64 // of what was announced
	size  int64
}

func newMemory(ctx context.Context, s *server) *memory {
	m := &memory{table: s.table, devices: s.config.Devices}
	m.ctx, m.cancel = context.WithTimeout(ctx, announceTime)
	return m
}

// release lets go of everything. Nothing decoded with m is used after it.
func (m *memory) release() {
	m.cancel()
	for _, f := range m.files {
		f.file.Close()
	}
	for _, v := range m.views {
		v.Release()
	}
}

func (m *memory) Segment(ref *pb.MemoryRef, writable bool) ([]byte, error) {
	view, err := m.lookup(ref.GetSegmentId(), ref.GetGeneration(), writable)
	if err != nil {
		return nil, err
	}
	return view.Slice(ref.GetOffset(), ref.GetSize())
}

func (m *memory) Device(block tensor.Block) (uintptr, tensor.Device, error) {
	if m.devices == nil {
		return 0, "", core.Errorf(core.ErrDeviceUnavailable, "memory of %s: this plugin runs on the CPU only", block.Device)
	}
	return m.devices.Open(block)
}

func (m *memory) File(id uint64, offset, size int64, writable bool) (tensor.Extent, error) {
	f, err := m.file(fileKey{id: id, writable: writable})
	if err != nil {
		return tensor.Extent{}, err
	}
	if offset < 0 || size < 0 || offset > f.size || size > f.size-offset {
		return tensor.Extent{}, errors.New("the operand lies outside of its file")
	}
	return tensor.Extent{File: f.file, Offset: f.start + offset, Size: size, Writable: writable}, nil
}

func (m *memory) file(key fileKey) (openFile, error) {
	if f, ok := m.files[key]; ok {
		return f, nil
	}
	view, err := m.lookup(key.id, 1, key.writable)
	if err != nil {
		return openFile{}, err
	}
	file, start, err := view.File()
	if err != nil {
		return openFile{}, err
	}
	if m.files == nil {
		m.files = make(map[fileKey]openFile)
	}
	f := openFile{file: file, start: start, size: int64(len(view.Bytes()))}
	m.files[key] = f
	return f, nil
}

func (m *memory) lookup(id, generation uint64, writable bool) (*shm.View, error) {
	access := shm.ReadOnly
	if writable {
		access = shm.ReadWrite
	}
	view, err := m.table.Lookup(m.ctx, id, generation, access)
	if err != nil {
		return nil, err
	}
	m.views = append(m.views, view)
	return view, nil
}
