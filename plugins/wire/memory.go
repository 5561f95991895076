package wire

import (
	"math"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// Memory finds what messages refer to. It checks ranges against what was
// announced.
type Memory interface {
	// Segment is the bytes of a range, valid until the call ends.
	Segment(ref *pb.MemoryRef, writable bool) ([]byte, error)
	// Device is the address, in this process, of the start of an exported block,
	// valid until the host lets go of the block, and the device's name here.
	Device(block tensor.Block) (uintptr, tensor.Device, error)
	// File is a range of an announced file, valid until the call ends.
	File(id uint64, offset, size int64, writable bool) (tensor.Extent, error)
}

// EncodeTensor refers to t, element zero of which lies at offset of a segment.
func EncodeTensor(t *tensor.Tensor, segment, generation uint64, offset int64) *pb.TensorRef {
	return &pb.TensorRef{
		SegmentId: segment, Generation: generation, Offset: offset, Dtype: pb.Dtype(t.Dtype()),
		Shape: t.Shape(), Strides: t.Strides(), Device: string(t.Device()),
	}
}

// EncodeDeviceTensor refers to t, element zero of which lies at offset of an
// exported block.
func EncodeDeviceTensor(t *tensor.Tensor, block *tensor.Block, offset int64) *pb.TensorRef {
	m := EncodeTensor(t, 0, 0, 0)
	m.Memory = encodeBlock(block, offset)
	return m
}

func encodeBlock(block *tensor.Block, offset int64) *pb.DeviceRef {
	return &pb.DeviceRef{Handle: block.Handle, Uuid: block.UUID, Size: block.Size, Offset: offset}
}

// handleSize is that of a CUipcMemHandle.
const handleSize = 64

// DecodeTensor views the tensor referred to.
func DecodeTensor(name string, m *pb.TensorRef, memory Memory, writable bool) (*tensor.Tensor, error) {
	if m == nil {
		return nil, absent(name)
	}
	device := tensor.Device(m.GetDevice())
	if device != tensor.CPU && m.GetMemory() == nil {
		return nil, core.Errorf(core.ErrDeviceUnavailable, "%s on device %q: want %q, or memory of a device", name, m.GetDevice(), tensor.CPU)
	}
	dtype, err := decodeDtype(name, m.GetDtype())
	if err != nil {
		return nil, err
	}
	if len(m.GetShape()) > maxRank {
		return nil, core.Invalid("", "message: %s has %d axes: want at most %d", name, len(m.GetShape()), maxRank)
	}
	if m.GetOffset()%dtype.Size() != 0 {
		return nil, core.Invalid("", "message: %s at byte %d: want a multiple of %d", name, m.GetOffset(), dtype.Size())
	}
	span, err := tensor.Span(dtype, m.GetShape(), m.GetStrides())
	if err != nil {
		return nil, core.Invalid("", "message: %s: %s", name, err)
	}
	if err := checkSize(name, dtype, m.GetShape(), span, writable); err != nil {
		return nil, err
	}
	if device != tensor.CPU {
		return decodeDeviceTensor(name, m, dtype, span, memory)
	}
	ref := &pb.MemoryRef{SegmentId: m.GetSegmentId(), Generation: m.GetGeneration(), Offset: m.GetOffset(), Size: span}
	bytes, err := memory.Segment(ref, writable)
	if err != nil {
		return nil, core.Invalid("", "message: %s: %s", name, err)
	}
	t, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(bytes)), dtype, m.GetShape(), m.GetStrides(), tensor.CPU)
	if err != nil {
		return nil, core.Invalid("", "message: %s: %s", name, err)
	}
	return t, nil
}

// decodeDeviceTensor views a tensor in a block of device memory.
func decodeDeviceTensor(name string, m *pb.TensorRef, dtype tensor.Dtype, span int64, memory Memory) (*tensor.Tensor, error) {
	address, device, err := decodeDeviceRef(name, m.GetMemory(), m.GetDevice(), span, dtype.Size(), memory)
	if err != nil {
		return nil, err
	}
	// The device's memory, which Go's collector does not know.
	t, err := tensor.Borrow(*(*unsafe.Pointer)(unsafe.Pointer(&address)), dtype, m.GetShape(), m.GetStrides(), device)
	if err != nil {
		return nil, core.Invalid("", "message: %s: %s", name, err)
	}
	return t, nil
}

// decodeDeviceRef finds span bytes of a block, at a multiple of align.
func decodeDeviceRef(name string, ref *pb.DeviceRef, device string, span, align int64, memory Memory) (uintptr, tensor.Device, error) {
	at, size := ref.GetOffset(), ref.GetSize()
	if len(ref.GetHandle()) != handleSize {
		return 0, "", core.Invalid("", "message: %s: a handle of %d bytes: want %d", name, len(ref.GetHandle()), handleSize)
	}
	if at < 0 || size < 0 || at%align != 0 || span > size || at > size-span {
		return 0, "", core.Invalid("", "message: %s: %d bytes at %d of a block of %d: want them inside, at a multiple of %d", name, span, at, size, align)
	}
	base, here, err := memory.Device(tensor.Block{Device: tensor.Device(device), UUID: ref.GetUuid(), Handle: ref.GetHandle(), Size: size})
	return base + uintptr(at), here, err
}

// EncodeFence refers to a fence at offset of an exported block.
func EncodeFence(f *tensor.Fence, block *tensor.Block, offset int64) *pb.Fence {
	return &pb.Fence{Device: string(f.Device), Value: f.Value, Memory: encodeBlock(block, offset)}
}

// decodeFence finds a fence; nil: none.
func decodeFence(name string, m *pb.Fence, memory Memory) (*tensor.Fence, error) {
	if m == nil {
		return nil, nil
	}
	address, device, err := decodeDeviceRef(name, m.GetMemory(), m.GetDevice(), fenceSize, fenceSize, memory)
	if err != nil {
		return nil, err
	}
	return &tensor.Fence{Device: device, Address: address, Value: m.GetValue()}, nil
}

// fenceSize is the bytes of the number.
const fenceSize = 4

// checkSize bounds how many elements a little memory may stand for: broadcast
// inputs repeat theirs, outputs have a place for each.
func checkSize(name string, dtype tensor.Dtype, shape []int64, span int64, writable bool) error {
	n, err := elements(name, dtype, shape)
	if err != nil {
		return err
	}
	places := span / dtype.Size()
	if writable && n > places {
		return core.Invalid("", "message: %s: its elements overlap", name)
	}
	if n > places*maxRepeats {
		return core.Invalid("", "message: %s repeats %d elements %d times: want at most %d", name, places, n/max(places, 1), maxRepeats)
	}
	return nil
}

func decodeDtype(name string, d pb.Dtype) (tensor.Dtype, error) {
	if d <= 0 || d > math.MaxUint8 || tensor.Dtype(d).Size() == 0 {
		return tensor.Invalid, core.Invalid("", "message: %s: dtype %d is not known", name, d)
	}
	return tensor.Dtype(d), nil
}

// elements is the number of elements of a dense shape, checked for overflow.
func elements(name string, dtype tensor.Dtype, shape []int64) (int64, error) {
	if len(shape) > maxRank {
		return 0, core.Invalid("", "message: %s has %d axes: want at most %d", name, len(shape), maxRank)
	}
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > 0 && n > math.MaxInt64/d {
			return 0, core.Invalid("", "message: %s: shape %v overflows", name, shape)
		}
		n *= d
	}
	if n > math.MaxInt64/dtype.Size() {
		return 0, core.Invalid("", "message: %s: shape %v overflows", name, shape)
	}
	return n, nil
}
