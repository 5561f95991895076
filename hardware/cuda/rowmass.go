package cuda

/*
#include "src/rowmass_args.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// RowSets are query rows whose exact softmax is wanted, of a call whose batch
// entries are sequences by themselves.
type RowSets struct {
	Sets  []int32 // of each set, batch entry * query heads + query head
	Rows  []int32 // [set, Count]: row numbers, negative where there is none
	Count int
}

// Measured is float32 in memory of the queue, valid until its next RowMass or
// Pool: the share of each row's softmax in each tile of keys, [set, Count, key
// tiles], and its LSE, [set, Count], natural logarithm, sinks not included.
type Measured struct {
	Mass, LSE Address
	KeyTiles  int
}

// RowMass starts the two kernels on the queue. Out, LSE, Mask and Sinks of the
// call are not looked at.
func (q *Queue) RowMass(a Attention, r RowSets) (Measured, error) {
	if a.Sequences != nil || len(r.Sets) == 0 || r.Count < 1 || len(r.Rows) != len(r.Sets)*r.Count || len(r.Sets) > mostGroups {
		return Measured{}, fmt.Errorf("cuda: %d sets of %d rows as %d numbers, %d sequences: want up to %d sets, equally long, and batch entries alone",
			len(r.Sets), r.Count, len(r.Rows), len(a.Sequences), mostGroups)
	}
	a.Out, a.LSE = a.Query, a.Query.Data // not written
	if err := a.validate(); err != nil {
		return Measured{}, err
	}
	a, err := q.withRotated(a)
	if err != nil {
		return Measured{}, err
	}
	args, err := q.rowMassArgs(a, r)
	if err != nil {
		return Measured{}, err
	}
	kernel, dim := rowMassKernel(a.Query.Dim, a.Half), compiledDim(a.Query.Dim)
	tiles, pointer := ceilDiv(r.Count, Tile), unsafe.Pointer(&args)
	for _, l := range []launch{
		{entry: "rowmass_scores", grid: [3]int{tiles, ceilDiv(int(args.k_blocks), int(args.chunk)), len(r.Sets)}, shared: 2 * Tile * dim * 2},
		{entry: "rowmass_shares", grid: [3]int{ceilDiv(len(r.Rows), 8), 1}},
	} {
		l.kernel, l.threads, l.args = kernel, 256, pointer
		if err := q.launch(l); err != nil {
			return Measured{}, err
		}
	}
	return Measured{Mass: Address(args.mass), LSE: Address(args.lse), KeyTiles: int(args.k_blocks)}, nil
}

func rowMassKernel(headDim int, half bool) Kernel {
	return attendKernel("rowmass.cu", 80, false, headDim, half)
}

// rowMassArgs also places the memory and brings the sets there.
func (q *Queue) rowMassArgs(a Attention, r RowSets) (C.RowMassArgs, error) {
	rotated, _ := a.rotated()
	blocks := ceilDiv(a.Key.Rows, Tile)
	args := C.RowMassArgs{
		q: C.ulonglong(a.Query.Data), k: C.ulonglong(a.Key.Data),
		q_batch: C.longlong(a.Query.StrideB), q_head: C.longlong(a.Query.StrideH), q_row: C.longlong(a.Query.Stride),
		k_batch: C.longlong(a.Key.StrideB), k_head: C.longlong(a.Key.StrideH), k_row: C.longlong(a.Key.Stride),
		q_heads: C.int(a.Query.Heads), kv_heads: C.int(a.Key.Heads), k_len: C.int(a.Key.Rows), k_blocks: C.int(blocks),
		q_offset: C.int(a.Offset), head_dim: C.int(a.Query.Dim), groups: C.int(len(r.Sets)), count: C.int(r.Count),
		chunk: C.int(queryChunk(blocks, ceilDiv(r.Count, Tile)*len(r.Sets), q.device.Processors)),
		band:  C.int(a.Band), window: C.int(a.Window), scale: C.float(a.Scale), softcap: C.float(a.Softcap),
	}
	if a.Rotated != nil {
		args.q2 = C.ulonglong(rotated.Data)
		args.q2_batch, args.q2_head, args.q2_row = C.longlong(rotated.StrideB), C.longlong(rotated.StrideH), C.longlong(rotated.Stride)
	}
	if a.Full {
		args.full = 1
	}
	numbers := append(append([]int32(nil), r.Sets...), r.Rows...)
	sizes := [...]int{4 * len(numbers), 4 * len(r.Rows), 4 * len(r.Rows) * blocks}
	const align = 256
	total := 0
	for _, size := range sizes {
		total += ceilDiv(size, align) * align
	}
	if err := q.room(&q.measured, total); err != nil {
		return args, err
	}
	at := q.measured.at
	args.sets, args.rows = C.ulonglong(at), C.ulonglong(at+Address(4*len(r.Sets)))
	at += Address(ceilDiv(sizes[0], align) * align)
	args.lse = C.ulonglong(at)
	args.mass = C.ulonglong(at + Address(ceilDiv(sizes[1], align)*align))
	return args, q.Upload(q.measured.at, unsafe.Slice((*byte)(unsafe.Pointer(&numbers[0])), 4*len(numbers)))
}

// Pool starts the means of the rows of t by blocks of their position, the first
// of which is offset: float32 [batch, heads, blocks, head_dim] in memory of the
// queue, valid until its next Pool or RowMass.
func (q *Queue) Pool(t Tensor, half bool, offset, block int) (mean Address, blocks int, err error) {
	if err := t.validate("the tensor"); err != nil {
		return 0, 0, err
	}
	if groups := t.Batch * t.Heads; offset < 0 || block < 1 || groups > mostGroups {
		return 0, 0, fmt.Errorf("cuda: blocks of %d from position %d, of %d heads: want positive blocks, and at most %d heads", block, offset, groups, mostGroups)
	}
	first := offset / block
	blocks = (offset+t.Rows-1)/block - first + 1
	if err := q.room(&q.measured, 4*t.Batch*t.Heads*blocks*t.Dim); err != nil {
		return 0, 0, err
	}
	args := C.PoolArgs{x: C.ulonglong(t.Data), mean: C.ulonglong(q.measured.at),
		batch_stride: C.longlong(t.StrideB), head_stride: C.longlong(t.StrideH), row_stride: C.longlong(t.Stride),
		heads: C.int(t.Heads), rows: C.int(t.Rows), offset: C.int(offset), head_dim: C.int(t.Dim),
		block: C.int(block), first: C.int(first), blocks: C.int(blocks)}
	return q.measured.at, blocks, q.launch(launch{kernel: rowMassKernel(t.Dim, half), entry: "pool_blocks",
		grid: [3]int{blocks, t.Batch * t.Heads}, threads: 256, args: unsafe.Pointer(&args)})
}
