package cpu

// #include "support.h"
import "C"

import (
	"context"
	"fmt"
	"math"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// restItem is some rows of one query block of one head, and the means that
// every one of them sees whole.
type restItem struct {
	sequence, head, block, row, rows int
	first, last                      int
}

func (s *session) AddMeans(ctx context.Context, masks []hardware.Blocks) error {
	if !s.request.Causal || len(masks) == 0 {
		return fmt.Errorf("cpu: means of %d masks, causal %v: want masks of a causal problem", len(masks), s.request.Causal)
	}
	if _, err := s.plan(masks); err != nil { // checks them
		return err
	}
	size := masks[0].Size
	keys, err := s.Pool(ctx, false, size, 1)
	if err != nil {
		return err
	}
	values, err := s.poolKeys(ctx, size, 1, func(k *C.trivium_keys) C.trivium_matrix { return k.value })
	if err != nil {
		return err
	}
	d, err := s.means(keys, values)
	if err != nil {
		d.Close()
		return err
	}
	defer d.Close()
	defer raiseOn(ctx, s.cancel)()
	if err := d.packRoomForAll(); err != nil {
		return err
	}
	items := s.restItems(size)
	threads, err := d.workers(len(items))
	if err != nil {
		return err
	}
	rowFloats := int(s.problem.value_dim) + 1
	room, err := array[float32](&d.memory, threads*C.TRIVIUM_QUERY_ROWS*rowFloats)
	if err != nil {
		return err
	}
	for i := range masks {
		if len(masks[i].Columns) > 0 {
			d.pinned.Pin(&masks[i].Columns[0])
		}
	}
	heads := len(s.request.Sequences[0].Query)
	return forEach(ctx, threads, len(items), func(worker, i int) {
		item := &items[i]
		var whole C.trivium_attend
		s.fill(&whole, int32(item.sequence), int32(item.head), int32(item.row), int32(item.rows))
		mask := &masks[item.sequence*heads+item.head]
		kept := mask.Columns[mask.RowPtr[item.block]:mask.RowPtr[item.block+1]]
		call := C.trivium_rest{
			head: &d.heads[item.sequence][item.head], output: whole.output, lse: whole.lse,
			room: (*C.float)(unsafe.Pointer(&room[worker*C.TRIVIUM_QUERY_ROWS*rowFloats])),
			row:  whole.row, rows: whole.rows, first: C.int64_t(item.first), last: C.int64_t(item.last),
			weight: C.float(math.Log(float64(size))), count: C.int64_t(len(kept)),
		}
		if len(kept) > 0 {
			call.kept = (*C.int32_t)(unsafe.Pointer(&kept[0]))
		}
		C.trivium_run_rest(d.kernels, &call, d.scratch[worker])
	})
}

func (s *session) restItems(size int) []restItem {
	var items []restItem
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		if q.LSE == nil {
			continue
		}
		eachBlock(q, size, func(block, row, rows int) {
			position := floorDiv(q.Offset, size) + block
			item := restItem{sequence: i, block: block, last: min(position, (q.Key[0].Rows+size-1)/size)}
			if s.request.Window > 0 { // the block's last query sees the fewest
				item.first = max(0, (q.Offset+row+rows-int(s.request.Window)+size-1)/size)
			}
			if item.first >= item.last {
				return
			}
			for end := row + rows; row < end; row += C.TRIVIUM_QUERY_ROWS {
				item.row, item.rows = row, min(end-row, C.TRIVIUM_QUERY_ROWS)
				for item.head = range q.Query {
					items = append(items, item)
				}
			}
		})
	}
	return items
}
