package cpu

// #include "support.h"
import "C"

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// attendItem is one query block of one head, or of the heads of a group, or,
// when part of a split, that block against some of its keys.
type attendItem struct {
	sequence, head, heads int32
	row, rows             int32
	first, last           int64 // keys; with a mask: of Columns
	cost                  int64
	partial               int64 // floats into the partial results; -1: not split
	stride                int64 // floats from the partial results of one head to those of the next
}

// split is a block whose parts are to be merged.
type split struct {
	sequence, head int32
	row, rows      int32
	parts          int64
	partial        int64
}

// Few rows against many keys are split over the keys, always at the same
// places, so that the result does not depend on the number of threads.
const (
	splitRows = 32
	splitKeys = 4096
)

// plan is what Attend will run.
type plan struct {
	items    []attendItem
	splits   []split
	partials int64 // floats
	stride   int64 // floats of a partial row
}

func (s *session) Attend(ctx context.Context, masks []hardware.Blocks) error {
	for i := range s.request.Sequences {
		if s.request.Sequences[i].Output == nil {
			return fmt.Errorf("cpu: sequence %d has no output to write", i)
		}
	}
	p, err := s.plan(masks)
	if err != nil {
		return err
	}
	defer raiseOn(ctx, s.cancel)()
	if masks != nil {
		if err := s.packRoomForAll(); err != nil {
			return err
		}
	}
	var partial memory
	defer partial.free()
	var partials unsafe.Pointer
	if p.partials > 0 {
		if partials, err = partial.alloc(C.size_t(p.partials) * C.sizeof_float); err != nil {
			return err
		}
	}
	threads, err := s.workers(len(p.items))
	if err != nil {
		return err
	}
	var pinned runtime.Pinner
	defer pinned.Unpin()
	for i := range masks {
		if len(masks[i].Columns) > 0 {
			pinned.Pin(&masks[i].Columns[0])
		}
	}
	group := len(s.heads[0]) / len(s.keys[0])
	calls := make([]C.trivium_attend, 2*threads*group) // for each worker those of its item and of its next
	pinned.Pin(&calls[0])
	fill := func(list []C.trivium_attend, item *attendItem) {
		for h := range list {
			call := &list[h]
			s.fill(call, item.sequence, item.head+int32(h), item.row, item.rows)
			call.first, call.last = C.int64_t(item.first), C.int64_t(item.last)
			if masks != nil {
				s.fillBlocks(call, item, &masks[s.maskIndex(item)])
			}
			if item.partial >= 0 {
				call.partial = (*C.float)(unsafe.Add(partials, 4*(item.partial+int64(h)*item.stride)))
			}
		}
	}
	err = forEachQueued(ctx, threads, p.queues(group), func(worker, i, following int) {
		item, room := &p.items[i], calls[2*worker*group:][:2*group]
		list := room[:item.heads]
		fill(list, item)
		if following >= 0 {
			fill(room[group:][:1], &p.items[following])
			list[0].next = &room[group]
		}
		C.trivium_run_attend(s.kernels, &list[0], C.int32_t(item.heads), s.scratch[worker])
	})
	if err != nil {
		return err
	}
	return forEach(ctx, min(threads, len(p.splits)), len(p.splits), func(worker, i int) {
		m := &p.splits[i]
		call := &calls[2*worker*group]
		s.fill(call, m.sequence, m.head, m.row, m.rows)
		call.partial = (*C.float)(unsafe.Add(partials, 4*m.partial))
		C.trivium_merge(call, C.int64_t(m.parts))
	})
}

// fill sets what an item and a merge have in common.
func (s *session) fill(call *C.trivium_attend, sequence, head, row, rows int32) {
	q := &s.request.Sequences[sequence]
	o := q.Output[head]
	*call = C.trivium_attend{
		head:   &s.heads[sequence][head],
		output: C.trivium_matrix{data: o.Data, rows: C.int64_t(o.Rows), stride: C.int64_t(o.Stride), cols: C.int32_t(o.Cols), dtype: C.int32_t(o.Dtype)},
		row:    C.int64_t(row), rows: C.int64_t(rows), sink: C.float(math.Inf(-1)),
	}
	if s.request.Sinks != nil {
		call.sink = C.float(s.request.Sinks[head])
	}
	if q.LSE != nil && len(q.LSE[head]) > 0 {
		call.lse = (*C.float)(unsafe.Pointer(&q.LSE[head][0]))
	}
}

func (s *session) fillBlocks(call *C.trivium_attend, item *attendItem, mask *hardware.Blocks) {
	call.block_size, call.blocks = C.int64_t(mask.Size), C.int64_t(item.last-item.first)
	call.block = (*C.int32_t)(s.cancel) // an empty list is not NULL, and never read
	if item.last > item.first {
		call.block = (*C.int32_t)(unsafe.Pointer(&mask.Columns[item.first]))
	}
}

func (s *session) maskIndex(item *attendItem) int {
	return int(item.sequence)*len(s.request.Sequences[0].Query) + int(item.head)
}

// plan lists the items by kv heads, the longest first; of equal ones the heads of a
// group follow each other, so that they find their keys in the cache.
func (s *session) plan(masks []hardware.Blocks) (*plan, error) {
	p := &plan{stride: int64(s.problem.value_dim) + 1}
	heads := len(s.request.Sequences[0].Query)
	if masks != nil && len(masks) != heads*len(s.request.Sequences) {
		return nil, fmt.Errorf("cpu: %d block masks: want one for each of %d sequences and %d query heads", len(masks), len(s.request.Sequences), heads)
	}
	for i := range s.request.Sequences {
		together := 1
		if masks == nil && s.few(i) {
			together = heads / len(s.keys[i])
		}
		for h := 0; h < heads; h += together {
			if masks == nil {
				s.planDense(p, i, h, together)
				continue
			}
			if err := s.planMasked(p, i, h, &masks[i*heads+h]); err != nil {
				return nil, fmt.Errorf("cpu: sequence %d, head %d: %w", i, h, err)
			}
		}
	}
	group := int32(heads / len(s.keys[0]))
	slices.SortStableFunc(p.items, func(a, b attendItem) int {
		return cmp.Or(cmp.Compare(a.sequence, b.sequence), cmp.Compare(a.head/group, b.head/group), cmp.Compare(b.cost, a.cost))
	})
	return p, nil
}

// queues are the items of each kv head.
func (p *plan) queues(group int) []queue {
	var list []queue
	for i := range p.items {
		if i == 0 || p.items[i].sequence != p.items[i-1].sequence || p.items[i].head/int32(group) != p.items[i-1].head/int32(group) {
			list = append(list, queue{next: i})
		}
		list[len(list)-1].end = i + 1
	}
	return list
}

func (s *session) planDense(p *plan, sequence, head, heads int) {
	q := &s.request.Sequences[sequence]
	eachBlock(q, C.TRIVIUM_QUERY_ROWS, func(_, row, rows int) {
		first, last := s.visible(q, row, rows)
		first -= first % C.TRIVIUM_PACK_ROWS
		item := attendItem{sequence: int32(sequence), head: int32(head), heads: int32(heads), row: int32(row), rows: int32(rows), first: first, last: last}
		p.add(item, last-first, splitKeys)
	})
}

func (s *session) planMasked(p *plan, sequence, head int, mask *hardware.Blocks) error {
	q := &s.request.Sequences[sequence]
	if err := checkMask(q, mask); err != nil {
		return err
	}
	size := int64(mask.Size)
	eachBlock(q, mask.Size, func(block, row, rows int) {
		first, last := mask.RowPtr[block], mask.RowPtr[block+1]
		for end := row + rows; row < end; row += C.TRIVIUM_QUERY_ROWS {
			rows := min(end-row, C.TRIVIUM_QUERY_ROWS)
			item := attendItem{sequence: int32(sequence), head: int32(head), heads: 1, row: int32(row), rows: int32(rows), first: first, last: last}
			p.add(item, (last-first)*size, max(1, splitKeys/size))
		}
	})
	return nil
}

// add takes an item that looks at that many keys, split if need be into parts
// of so many of its units, keys or blocks.
func (p *plan) add(item attendItem, keys, unit int64) {
	item.partial = -1
	units := item.last - item.first
	if item.rows > splitRows || units <= unit {
		item.cost = keys * int64(item.rows*item.heads)
		p.items = append(p.items, item)
		return
	}
	parts := (units + unit - 1) / unit
	size := int64(item.rows) * p.stride
	for h := range item.heads {
		p.splits = append(p.splits, split{item.sequence, item.head + h, item.row, item.rows, parts, p.partials + int64(h)*parts*size})
	}
	for i := range parts {
		part := item
		part.first, part.last = item.first+i*unit, min(item.first+(i+1)*unit, item.last)
		part.cost = keys / units * (part.last - part.first) * int64(item.rows*item.heads)
		part.partial, part.stride = p.partials+i*size, parts*size
		p.items = append(p.items, part)
	}
	p.partials += int64(item.heads) * parts * size
}

// visible is the range of keys that some of the rows see.
func (s *session) visible(q *hardware.Sequence, row, rows int) (first, last int64) {
	keys := int64(q.Key[0].Rows)
	last = keys
	if s.request.Causal {
		last = min(keys, max(0, int64(q.Offset+row+rows)))
	}
	if s.request.Window > 0 {
		first = min(last, max(0, int64(q.Offset+row)-s.request.Window+1))
	}
	return first, last
}

// eachBlock calls f with the number of each query block, counted from the
// first, and its rows.
func eachBlock(q *hardware.Sequence, size int, f func(block, row, rows int)) {
	end := q.Query[0].Rows
	for row, block := 0, 0; row < end; block++ {
		next := min(end, (floorDiv(q.Offset+row, size)+1)*size-q.Offset)
		f(block, row, next-row)
		row = next
	}
}

func checkMask(q *hardware.Sequence, mask *hardware.Blocks) error {
	if mask.Size < 16 || mask.Size%16 != 0 {
		return fmt.Errorf("block size %d: want a multiple of 16", mask.Size)
	}
	blocks := blockCount(q.Offset, q.Query[0].Rows, mask.Size)
	if len(mask.RowPtr) != blocks+1 || mask.RowPtr[blocks] > int64(len(mask.Columns)) || mask.RowPtr[0] < 0 {
		return fmt.Errorf("%d row pointers for %d query blocks and %d columns: want one more than blocks, the last at most the columns", len(mask.RowPtr), blocks, len(mask.Columns))
	}
	keyBlocks := int32((q.Key[0].Rows + mask.Size - 1) / mask.Size)
	for i := range blocks {
		first, last := mask.RowPtr[i], mask.RowPtr[i+1]
		if last < first {
			return fmt.Errorf("row pointers of query block %d fall from %d to %d: want them to rise", i, first, last)
		}
		row := mask.Columns[first:last]
		for j, c := range row {
			if c < 0 || c >= keyBlocks || (j > 0 && c <= row[j-1]) {
				return fmt.Errorf("query block %d keeps key block %d at place %d: want rising numbers below %d", i, c, j, keyBlocks)
			}
		}
	}
	return nil
}

// blockCount is the number of blocks of position that rows at offset touch.
func blockCount(offset, rows, size int) int {
	if rows == 0 {
		return 0
	}
	return floorDiv(offset+rows-1, size) - floorDiv(offset, size) + 1
}

func floorDiv(a, b int) int {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}
