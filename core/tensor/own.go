package tensor

import "github.com/apache/arrow/go/v17/arrow/memory"

// Own makes a dense row-major tensor of memory outside of Go. free is called once,
// when the last holder releases it. When Own fails the memory stays the caller's.
func Own(bytes []byte, dtype Dtype, shape []int64, free func()) (*Tensor, error) {
	buffer := memory.NewBufferWithAllocator(bytes, owner{free})
	t, err := New(buffer, 0, dtype, shape, nil, CPU)
	if err != nil {
		return nil, err
	}
	buffer.Release()
	return t, nil
}

// owner is an allocator for one buffer that never grows.
type owner struct{ free func() }

func (o owner) Free([]byte) { o.free() }

func (o owner) Allocate(int) []byte { panic("tensor: the memory was allocated elsewhere") }

func (o owner) Reallocate(int, []byte) []byte { panic("tensor: the memory was allocated elsewhere") }
