package cuda

/*
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Queue runs work in the order of one stream and owns the scratch memory that
// the work needs. One goroutine at a time may use it.
type Queue struct {
	device   *Device
	stream   unsafe.Pointer
	own      bool
	counter  Address // two words, zero between launches
	scratch  Address // of the index, grown as needed
	size     int
	done     Address // counters of the index, zero between launches
	heads    int     // that done has room for
	table    buffer  // sequences of the last call that had some
	parts    buffer  // of a call that is split over the keys
	tickets  buffer  // zero between launches
	chosen   buffer  // the mask of a selector, and what it was made from
	measured buffer  // rows or means for who chooses on the host
	second   buffer  // queries that a turn made
}

// buffer is device memory of a queue.
type buffer struct {
	at   Address
	size int
}

// room makes a buffer hold size bytes; work that uses the old one is waited for.
func (q *Queue) room(b *buffer, size int) error {
	if size <= b.size {
		return nil
	}
	if b.at != 0 {
		if err := q.Wait(); err != nil {
			return err
		}
		if err := q.device.Free(b.at); err != nil {
			return err
		}
	}
	*b = buffer{}
	var err error
	if b.at, err = q.device.Alloc(size); err == nil {
		b.size = size
	}
	return err
}

// zeroRoom is room that starts as zeros.
func (q *Queue) zeroRoom(b *buffer, size int) error {
	if size <= b.size {
		return nil
	}
	if err := q.room(b, size); err != nil {
		return err
	}
	rc := C.trivium_cuda_fill(q.device.driver, q.device.context, C.uint64_t(b.at), 0, C.size_t(size), q.stream)
	return q.device.check("cuMemsetD8Async", rc)
}

// NewQueue works on the caller's stream (a CUstream), or on one of its own when it is nil.
func (d *Device) NewQueue(stream unsafe.Pointer) (*Queue, error) {
	q := &Queue{device: d, stream: stream}
	if stream == nil {
		if err := d.check("cuStreamCreate", C.trivium_cuda_stream(d.driver, d.context, &q.stream)); err != nil {
			return nil, err
		}
		q.own = true
	}
	var err error
	if q.counter, err = q.zeroed(8); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

// zeroed takes memory that is zero for the work that follows.
func (q *Queue) zeroed(size int) (Address, error) {
	a, err := q.device.Alloc(size)
	if err != nil {
		return 0, err
	}
	rc := C.trivium_cuda_fill(q.device.driver, q.device.context, C.uint64_t(a), 0, C.size_t(size), q.stream)
	return a, q.device.check("cuMemsetD8Async", rc)
}

// Wait returns when all work of the queue is done, with its error if there is one.
func (q *Queue) Wait() error {
	return q.device.check("cuStreamSynchronize", C.trivium_cuda_synchronize(q.device.driver, q.device.context, q.stream))
}

// Close waits for the work and releases the memory.
func (q *Queue) Close() error {
	err := q.Wait()
	for _, a := range []*Address{&q.counter, &q.scratch, &q.done, &q.table.at, &q.parts.at, &q.tickets.at, &q.chosen.at, &q.measured.at, &q.second.at} {
		if freed := q.device.Free(*a); err == nil {
			err = freed
		}
		*a = 0
	}
	if q.own {
		if closed := q.device.check("cuStreamDestroy", C.trivium_cuda_stream_free(q.device.driver, q.device.context, q.stream)); err == nil {
			err = closed
		}
	}
	return err
}

// launch is one kernel start: the tensor maps, then the arguments.
type launch struct {
	kernel  Kernel
	entry   string
	grid    [3]int
	threads int
	shared  int
	limit   int // the most shared memory any launch of the entry asks for; 0: shared
	maps    []tensorMap
	args    unsafe.Pointer // borrowed for the call
}

func (q *Queue) launch(l launch) error {
	f, err := q.device.function(l.kernel, l.entry, max(l.limit, l.shared))
	if err != nil {
		return err
	}
	grid := [3]C.uint{C.uint(l.grid[0]), C.uint(l.grid[1]), C.uint(max(1, l.grid[2]))}
	var maps unsafe.Pointer
	if len(l.maps) > 0 {
		maps = unsafe.Pointer(&l.maps[0])
	}
	rc := C.trivium_cuda_launch(q.device.driver, q.device.context, f, &grid[0], C.uint(l.threads), C.uint(l.shared), q.stream,
		C.int(len(l.maps)), maps, l.args)
	return q.device.check("cuLaunchKernel "+l.entry, rc)
}

// Tensor is [batch, heads, rows, head_dim] on the device, borrowed; strides in
// elements, head_dim contiguous, address and strides multiples of 16 bytes.
type Tensor struct {
	Data                     Address
	Batch, Heads, Rows, Dim  int
	StrideB, StrideH, Stride int64
}

func (t Tensor) validate(name string) error {
	if t.Data == 0 || t.Batch < 1 || t.Heads < 1 || t.Rows < 1 {
		return fmt.Errorf("cuda: %s is empty: %d x %d x %d x %d at %#x", name, t.Batch, t.Heads, t.Rows, t.Dim, uint64(t.Data))
	}
	if t.Dim < 8 || t.Dim > 128 || t.Dim%8 != 0 {
		return fmt.Errorf("cuda: %s has head_dim %d: want a multiple of 8 up to 128 (pad with zeros; wider heads run on the CPU)", name, t.Dim)
	}
	if (uint64(t.Data)|uint64(t.StrideB*2)|uint64(t.StrideH*2)|uint64(t.Stride*2))%16 != 0 {
		return fmt.Errorf("cuda: %s starts or steps off 16 bytes: copy it to contiguous memory", name)
	}
	return nil
}

// tensorMap is a CUtensorMap.
type tensorMap [128]byte

// tensorMap describes boxes of so many rows and 64 columns of t.
func (d *Device) tensorMap(t Tensor, rows int, half bool) (tensorMap, error) {
	const float16, bfloat16 = 6, 9 // CUtensorMapDataType
	dtype := C.int(bfloat16)
	if half {
		dtype = float16
	}
	dims := [4]C.uint64_t{C.uint64_t(t.Dim), C.uint64_t(t.Rows), C.uint64_t(t.Heads), C.uint64_t(t.Batch)}
	strides := [3]C.uint64_t{}
	for i, s := range []int64{t.Stride, t.StrideH, t.StrideB} {
		strides[i] = C.uint64_t(max(16, 2*s)) // an axis of length one may have any stride
	}
	boxes := [4]C.uint32_t{64, C.uint32_t(rows), 1, 1}
	var m tensorMap
	rc := C.trivium_cuda_tensor_map(d.driver, d.context, unsafe.Pointer(&m), dtype, C.uint64_t(t.Data), &dims[0], &strides[0], &boxes[0])
	return m, d.check("cuTensorMapEncodeTiled", rc)
}

// DenseAt is a tensor of the shape of t in dense memory.
func (t Tensor) DenseAt(at Address) Tensor {
	t.Data = at
	t.Stride = int64(t.Dim)
	t.StrideH = t.Stride * int64(t.Rows)
	t.StrideB = t.StrideH * int64(t.Heads)
	return t
}

// Bytes is the size of a dense tensor of this shape.
func (t Tensor) Bytes() int { return 2 * t.Batch * t.Heads * t.Rows * t.Dim }
