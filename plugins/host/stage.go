package host

import (
	"context"
	"errors"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// input refers to a tensor that the plugin reads, a copy of it unless it lies
// in the pool.
func (c *call) input(ctx context.Context, name string, t *tensor.Tensor) (*pb.TensorRef, error) {
	if ref, err := c.direct(ctx, name, t); ref != nil || err != nil {
		return ref, err
	}
	from := layoutOf(t)
	dense := from.len() * from.size
	// Gaps of an eighth cost less than walking around them. Broadcast tensors
	// have fewer bytes than elements.
	if t.Span() <= dense+dense/8 {
		staged, segment, err := c.stage(ctx, name, t, t.Span(), t.Strides())
		if err != nil {
			return nil, err
		}
		c.timed(name, t.Span(), func() { c.service.host.options.Copy(segment, t.Bytes()) })
		return staged, nil
	}
	to := from.rowMajor()
	staged, segment, err := c.stage(ctx, name, t, dense, to.strides)
	if err != nil {
		return nil, err
	}
	c.timed(name, dense, func() { copyElements(segment, to, t.Bytes(), from) })
	return staged, nil
}

// output refers to a tensor that the plugin writes. Unless it lies in the pool,
// the plugin writes elsewhere, and copyBack copies it from there.
func (c *call) output(ctx context.Context, name string, t *tensor.Tensor) (*pb.TensorRef, error) {
	ref, err := c.direct(ctx, name, t)
	if err != nil {
		return nil, err
	}
	if ref != nil {
		c.writes = true
		return ref, nil
	}
	to := layoutOf(t)
	dense := to.len() * to.size
	if to.dense() {
		staged, segment, err := c.stage(ctx, name, t, dense, t.Strides())
		if err == nil {
			c.back = append(c.back, func() {
				c.timed(name, dense, func() { c.service.host.options.Copy(t.Bytes(), segment) })
			})
		}
		return staged, err
	}
	from := to.rowMajor()
	staged, segment, err := c.stage(ctx, name, t, dense, from.strides)
	if err == nil {
		c.back = append(c.back, func() {
			c.timed(name, dense, func() { copyElements(t.Bytes(), to, segment, from) })
		})
	}
	return staged, err
}

// copyBack copies what the plugin wrote to where the caller wants it.
func (c *call) copyBack() {
	for _, copyOne := range c.back {
		copyOne()
	}
}

// direct refers to t where it lies, nil if that is host memory outside of the pool.
func (c *call) direct(ctx context.Context, name string, t *tensor.Tensor) (*pb.TensorRef, error) {
	if t.Device() != tensor.CPU {
		return c.onDevice(name, t)
	}
	segment, offset, ok := c.service.host.pool.Find(uintptr(t.Pointer()), int(t.Span()))
	if !ok || offset%t.Dtype().Size() != 0 || !segment.Retain() {
		return nil, nil
	}
	c.segments = append(c.segments, segment)
	if err := c.session.Peer.Ensure(ctx, segment); err != nil {
		return nil, c.announceError(err)
	}
	return wire.EncodeTensor(t, segment.ID(), segment.Generation(), offset), nil
}

// stage takes size bytes from the pool for a tensor like t with other strides.
func (c *call) stage(ctx context.Context, name string, t *tensor.Tensor, size int64, strides []int64) (*pb.TensorRef, []byte, error) {
	segment, err := c.segment(ctx, size)
	if err != nil {
		return nil, nil, err
	}
	if err := segment.Prefault(); err != nil {
		return nil, nil, core.Errorf(core.ErrOutOfMemory, "%s: %w", name, err)
	}
	ref := wire.EncodeTensor(t, segment.ID(), segment.Generation(), 0)
	ref.Strides = strides
	return ref, segment.Bytes()[:size], nil
}

// segment takes at least size bytes from the pool and announces them.
func (c *call) segment(ctx context.Context, size int64) (*shm.Segment, error) {
	segment, err := c.service.host.pool.Get(int(size))
	if err != nil {
		return nil, core.Errorf(core.ErrOutOfMemory, "shared memory: %w", err)
	}
	c.segments = append(c.segments, segment)
	if err := c.session.Peer.Ensure(ctx, segment); err != nil {
		return nil, c.announceError(err)
	}
	return segment, nil
}

// announceError is the error of a side channel that failed, which it does when
// the process has died.
func (c *call) announceError(err error) error {
	if ended := c.session.Err(); ended != nil {
		return ended
	}
	if errors.Is(err, shm.ErrClosed) { // a moment before the death is known
		return c.session.broken("announcing memory", err)
	}
	return err
}

func (c *call) timed(name string, size int64, do func()) {
	began := time.Now()
	do()
	c.copyTime += time.Since(began)
	c.copied += size
	c.copiedFrom = append(c.copiedFrom, name)
}
