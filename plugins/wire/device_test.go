package wire

import (
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// goodDevice is good with every tensor in a block of 1 MiB of device memory.
func goodDevice() (*pb.AttentionRequest, arena) {
	m, memory := good()
	handle := make([]byte, handleSize)
	handle[0] = 1
	for _, t := range []*pb.TensorRef{m.Query, m.Key, m.Value, m.Output, m.Lse} {
		t.SegmentId, t.Generation, t.Device = 0, 0, "cuda:0"
		t.Memory = &pb.DeviceRef{Handle: handle, Size: 1 << 20, Offset: t.Offset, Uuid: []byte("0123456789abcdef")}
		t.Offset = 0
	}
	fence := func(offset int64, value uint32) *pb.Fence {
		return &pb.Fence{Device: "cuda:0", Value: value, Memory: &pb.DeviceRef{Handle: handle, Size: 1 << 20, Offset: offset, Uuid: []byte("0123456789abcdef")}}
	}
	m.Ready, m.Done = fence(1<<19, 7), fence(1<<19+64, 8)
	return m, memory
}

func TestDeviceTensorsArrive(t *testing.T) {
	m, memory := goodDevice()
	req, err := DecodeAttention(m, memory)
	if err != nil {
		t.Fatal(err)
	}
	if req.Key.Device() != "cuda:3" || uintptr(req.Key.Pointer()) != 1<<40+4096 {
		t.Errorf("key on %s at %#x, want cuda:3 and %#x", req.Key.Device(), uintptr(req.Key.Pointer()), 1<<40+4096)
	}
	if want := (tensor.Fence{Device: "cuda:3", Address: 1<<40 + 1<<19, Value: 7}); *req.Ready != want {
		t.Errorf("the fence ready is %+v, want %+v", *req.Ready, want)
	}
	if want := (tensor.Fence{Device: "cuda:3", Address: 1<<40 + 1<<19 + 64, Value: 8}); *req.Done != want {
		t.Errorf("the fence done is %+v, want %+v", *req.Done, want)
	}
	address := uintptr(1 << 40)
	block := &tensor.Block{Device: "cuda:0", UUID: []byte("u"), Handle: make([]byte, handleSize), Size: 4096}
	x, err := tensor.Borrow(*(*unsafe.Pointer)(unsafe.Pointer(&address)), tensor.BFloat16, []int64{2, 3}, []int64{8, 1}, "cuda:0")
	if err != nil {
		t.Fatal(err)
	}
	ref := EncodeDeviceTensor(x, block, 64)
	if d := ref.GetMemory(); d.GetOffset() != 64 || d.GetSize() != 4096 || ref.GetDevice() != "cuda:0" || ref.GetSegmentId() != 0 {
		t.Errorf("encoded as %v", ref)
	}
}

func TestHostileDeviceTensors(t *testing.T) {
	for name, test := range map[string]struct {
		spoil  func(*pb.AttentionRequest)
		expect string
	}{
		"short handle":          {func(m *pb.AttentionRequest) { m.Key.Memory.Handle = make([]byte, 63) }, "63 bytes"},
		"handle that won't do":  {func(m *pb.AttentionRequest) { m.Key.Memory.Handle = make([]byte, 64) }, "no such block"},
		"offset below zero":     {func(m *pb.AttentionRequest) { m.Key.Memory.Offset = -4 }, "key"},
		"offset in an element":  {func(m *pb.AttentionRequest) { m.Key.Memory.Offset = 2 }, "multiple of 4"},
		"beyond the block":      {func(m *pb.AttentionRequest) { m.Key.Memory.Offset = 1<<20 - 4 }, "want them inside"},
		"negative block":        {func(m *pb.AttentionRequest) { m.Key.Memory.Size = -1 }, "key"},
		"device without memory": {func(m *pb.AttentionRequest) { m.Key.Memory = nil }, "memory of a device"},
		"two devices": {func(m *pb.AttentionRequest) {
			m.Key.Device, m.Key.Memory, m.Key.SegmentId, m.Key.Generation = "cpu", nil, 1, 1
		}, "one device"},
		"fence nowhere":      {func(m *pb.AttentionRequest) { m.Ready.Memory = nil }, "ready"},
		"fence past the end": {func(m *pb.AttentionRequest) { m.Done.Memory.Offset = 1<<20 - 2 }, "done"},
		"fence in a number":  {func(m *pb.AttentionRequest) { m.Done.Memory.Offset = 6 }, "multiple of 4"},
	} {
		t.Run(name, func(t *testing.T) {
			m, memory := goodDevice()
			test.spoil(m)
			_, err := DecodeAttention(m, memory)
			refused(t, err, test.expect)
		})
	}
}
