package tile

import (
	"sync"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// chunk is how many elements are computed before they are written: few enough
// that the results stay in the second-level cache until the file has them.
const chunk = 128 << 10

// chunkOf is as many elements as keep so many results there, and few enough
// calls of the system to write them. What is written past the page cache goes to the
// disk at once, in pieces that are worth its while: twelve results of 1.3 GB by 256 KiB
// each in 7.5 s and 8 s of processor time, by 128 KiB 8.4 and 9, by 512 KiB 7.6 and 8.5;
// through the page cache, whose new pages the host had to give first, 9 - 12 s and 12 - 17.
func (b *batch) chunkOf(outputs int) int64 {
	if b.req.Uncached {
		return chunk
	}
	return max(16<<10, chunk/int64(outputs))
}

// buffers are results on their way to the files.
type buffers struct{ free sync.Pool }

// store lets fill compute count elements of every output from first on, and
// writes them. Results are written rather than mapped: faults on the pages of a
// file that is being filled cost several times the copy (ext4: 1.25 s of system
// time for 400 MB, 0.14 s by pwrite), and a failing disk is an error here and
// would be a signal there.
func (b *batch) store(outputs []core.MergeOperand, first, count int64, fill func(out []hardware.Vector) error) error {
	size := int64(0)
	for _, o := range outputs {
		size += aligned(count * o.Dtype.Size())
	}
	memory := b.buffers.get(size)
	defer b.buffers.put(memory)
	vectors, parts := make([]hardware.Vector, len(outputs)), make([][]byte, len(outputs))
	at := int64(0)
	for i, o := range outputs {
		n := count * o.Dtype.Size()
		parts[i] = memory[at : at+n]
		vectors[i] = hardware.Vector{Data: unsafe.Pointer(&parts[i][0]), Dtype: vectorDtype(o.Dtype), Len: count}
		at += aligned(n)
	}
	if err := fill(vectors); err != nil {
		return err
	}
	for i, o := range outputs {
		if err := b.write(o, first, parts[i]); err != nil {
			return err
		}
	}
	return nil
}

// write puts the bytes of elements from first on where they belong.
func (b *batch) write(o core.MergeOperand, first int64, data []byte) error {
	if err := o.Extent.Write(data, first*o.Dtype.Size(), b.req.Uncached); err != nil {
		return core.Errorf(core.ErrCheckpoint, "%s: %w", o.Name(), err).WithHint("free disk space or check the disk, then resume")
	}
	return nil
}

// aligned rounds up to a cache line, so that no two outputs share one.
func aligned(n int64) int64 { return (n + 63) &^ 63 }

func (b *buffers) get(size int64) []byte {
	if memory, ok := b.free.Get().(*[]byte); ok && int64(cap(*memory)) >= size {
		return (*memory)[:size]
	}
	return make([]byte, size)
}

func (b *buffers) put(memory []byte) { b.free.Put(&memory) }
