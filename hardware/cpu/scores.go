package cpu

// #include "support.h"
import "C"

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

func (s *session) Representative(ctx context.Context, rows int) ([]hardware.RepresentativeScores, error) {
	if rows < 1 {
		return nil, fmt.Errorf("cpu: %d representative rows: want at least 1", rows)
	}
	type part struct{ result, sequence, head, row, rows, floats int } // floats: where its columns and slashes are
	var results []hardware.RepresentativeScores
	var parts []part
	first := []int{0} // part of each result
	floats := 0
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		n, keys := min(rows, q.Query[0].Rows), q.Key[0].Rows
		sums, err := array[float32](&s.memory, len(q.Query)*2*keys)
		if err != nil {
			return nil, err
		}
		for h := range q.Query {
			r := hardware.RepresentativeScores{Columns: sums[:keys:keys], Slashes: sums[keys : 2*keys : 2*keys], LSE: make([]float32, n), Rows: n}
			sums = sums[2*keys:]
			for row := 0; row < n; row += C.TRIVIUM_REPRESENTATIVE_ROWS {
				parts = append(parts, part{len(results), i, h, row, min(C.TRIVIUM_REPRESENTATIVE_ROWS, n-row), floats})
				floats += 2 * keys
			}
			results, first = append(results, r), append(first, len(parts))
		}
	}
	var memory memory
	defer memory.free()
	data, err := memory.alloc(C.size_t(floats) * C.sizeof_float)
	if err != nil {
		return nil, err
	}
	sums := unsafe.Slice((*float32)(data), floats)
	d, err := s.scorer()
	if err != nil {
		return nil, err
	}
	if err := d.scored(ctx, len(parts), func(worker, i int, pinned *runtime.Pinner) {
		p := &parts[i]
		r := &results[p.result]
		lse := r.LSE[p.row : p.row+p.rows]
		pinned.Pin(&lse[0])
		call := C.trivium_representative{
			head: &d.heads[p.sequence][p.head], rows: C.int64_t(p.rows),
			row: C.int64_t(s.request.Sequences[p.sequence].Query[0].Rows - r.Rows + p.row),
			lse: (*C.float)(unsafe.Pointer(&lse[0])),
		}
		if keys := len(r.Columns); keys > 0 {
			call.columns = (*C.float)(unsafe.Pointer(&sums[p.floats]))
			call.slashes = (*C.float)(unsafe.Pointer(&sums[p.floats+keys]))
		}
		C.trivium_run_representative(d.kernels, &call, d.scratch[worker])
	}); err != nil {
		return nil, err
	}
	err = forEach(ctx, threadCount(s.request.Threads, len(results)), len(results), func(_, i int) {
		r := &results[i]
		for _, p := range parts[first[i]:first[i+1]] {
			addMean(r.Columns, sums[p.floats:], r.Rows)
			addMean(r.Slashes, sums[p.floats+len(r.Columns):], r.Rows)
		}
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

func addMean(to, from []float32, n int) {
	scale := 1 / float32(n)
	from = from[:len(to)]
	for i, x := range from {
		to[i] += x * scale
	}
}

// groups puts those of n calls together that share keys, so that keys come from
// memory once for all of them, as far as enough are left to keep threads busy. A
// call gives the same bytes in any company.
func (s *session) groups(n int, share func(a, b int) bool) [][]int {
	const each = 2 // groups that a thread should find, so that none waits long for the last
	most := max(1, min(C.TRIVIUM_GROUP_HEADS, n/(each*threadCount(s.request.Threads, n))))
	var groups [][]int
	taken := make([]bool, n)
	for a := range n {
		if taken[a] {
			continue
		}
		group := []int{a}
		for b := a + 1; b < n && len(group) < most; b++ {
			if !taken[b] && share(a, b) {
				group, taken[b] = append(group, b), true
			}
		}
		groups = append(groups, group)
	}
	return groups
}

// sameKeys says whether two query heads have one kv head.
func (s *session) sameKeys(a, b int) bool {
	group := len(s.request.Sequences[0].Query) / len(s.request.Sequences[0].Key)
	return a/group == b/group
}

func (s *session) RowMass(ctx context.Context, sets []hardware.RowSet, blockSize int) ([]hardware.RowMass, error) {
	if blockSize < 16 || blockSize%16 != 0 {
		return nil, fmt.Errorf("cpu: block size %d: want a multiple of 16", blockSize)
	}
	type part struct{ set, first, rows int }
	results := make([]hardware.RowMass, len(sets))
	orders := make([][]int32, 2*len(sets)) // rows in rising order, and the places of their results
	var parts []part
	for i, set := range sets {
		if err := s.checkRows(set); err != nil {
			return nil, err
		}
		if i > 0 && slices.Equal(set.Rows, sets[i-1].Rows) {
			orders[2*i], orders[2*i+1] = orders[2*i-2], orders[2*i-1]
		} else {
			orders[2*i], orders[2*i+1] = sortedRows(set.Rows)
		}
		blocks := (s.request.Sequences[set.Sequence].Key[0].Rows + blockSize - 1) / blockSize
		results[i] = hardware.RowMass{Mass: make([]float32, len(set.Rows)*blocks), LSE: make([]float32, len(set.Rows))}
		for first := 0; first < len(set.Rows); first += C.TRIVIUM_QUERY_ROWS {
			parts = append(parts, part{i, first, min(C.TRIVIUM_QUERY_ROWS, len(set.Rows)-first)})
		}
	}
	groups := s.groups(len(parts), func(a, b int) bool {
		x, y := &sets[parts[a].set], &sets[parts[b].set]
		return parts[a].first == parts[b].first && x.Sequence == y.Sequence && s.sameKeys(x.Head, y.Head) &&
			&orders[2*parts[a].set][0] == &orders[2*parts[b].set][0]
	})
	slices.SortStableFunc(groups, func(a, b []int) int { return cmp.Compare(parts[b[0]].first, parts[a[0]].first) }) // later rows see more keys
	d, err := s.scorer()
	if err != nil {
		return nil, err
	}
	err = d.scored(ctx, len(groups), func(worker, i int, pinned *runtime.Pinner) {
		var calls [C.TRIVIUM_GROUP_HEADS]C.trivium_row_mass
		for j, at := range groups[i] {
			p := &parts[at]
			r, set := &results[p.set], &sets[p.set]
			row, place := &orders[2*p.set][p.first], &orders[2*p.set+1][p.first]
			pinned.Pin(row)
			pinned.Pin(place)
			pinned.Pin(&r.LSE[0])
			calls[j] = C.trivium_row_mass{
				head: &d.heads[set.Sequence][set.Head], block_size: C.int64_t(blockSize), rows: C.int64_t(p.rows),
				row: (*C.int32_t)(unsafe.Pointer(row)), place: (*C.int32_t)(unsafe.Pointer(place)),
				lse: (*C.float)(unsafe.Pointer(&r.LSE[0])),
			}
			if len(r.Mass) > 0 {
				pinned.Pin(&r.Mass[0])
				calls[j].mass = (*C.float)(unsafe.Pointer(&r.Mass[0]))
			}
		}
		C.trivium_run_row_mass(d.kernels, &calls[0], C.int32_t(len(groups[i])), d.scratch[worker])
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// scored runs n calls that need scratch; what a call pins is let go after it.
func (s *session) scored(ctx context.Context, n int, call func(worker, i int, pinned *runtime.Pinner)) error {
	defer raiseOn(ctx, s.cancel)()
	if err := s.packRoomForAll(); err != nil {
		return err
	}
	threads, err := s.workers(n)
	if err != nil {
		return err
	}
	return forEach(ctx, threads, n, func(worker, i int) {
		var pinned runtime.Pinner
		defer pinned.Unpin()
		call(worker, i, &pinned)
	})
}

func (s *session) checkRows(set hardware.RowSet) error {
	if set.Sequence < 0 || set.Sequence >= len(s.heads) || set.Head < 0 || set.Head >= len(s.heads[set.Sequence]) {
		return fmt.Errorf("cpu: rows of sequence %d, head %d: want ones of this session", set.Sequence, set.Head)
	}
	rows := s.request.Sequences[set.Sequence].Query[0].Rows
	for _, r := range set.Rows {
		if r < 0 || int(r) >= rows {
			return fmt.Errorf("cpu: row %d of sequence %d: want one below %d", r, set.Sequence, rows)
		}
	}
	return nil
}

func sortedRows(rows []int32) (sorted, places []int32) {
	places = make([]int32, len(rows))
	for i := range places {
		places[i] = int32(i)
	}
	slices.SortStableFunc(places, func(a, b int32) int { return cmp.Compare(rows[a], rows[b]) })
	sorted = make([]int32, len(rows))
	for i, p := range places {
		sorted[i] = rows[p]
	}
	return sorted, places
}

func (s *session) Pool(ctx context.Context, query bool, blockSize, every int) ([]hardware.Pooled, error) {
	if every < 1 || blockSize%every != 0 {
		return nil, fmt.Errorf("cpu: every %d rows of blocks of %d: want a divisor", every, blockSize)
	}
	if query {
		return s.pool(ctx, blockSize, every, func(i int) (list []C.trivium_matrix) {
			for h := range s.heads[i] {
				list = append(list, s.heads[i][h].query)
			}
			return list
		}, func(q *hardware.Sequence) int { return q.Offset })
	}
	return s.poolKeys(ctx, blockSize, every, func(k *C.trivium_keys) C.trivium_matrix { return k.key })
}

// poolKeys pools keys or values.
func (s *session) poolKeys(ctx context.Context, blockSize, every int, of func(*C.trivium_keys) C.trivium_matrix) ([]hardware.Pooled, error) {
	return s.pool(ctx, blockSize, every, func(i int) (list []C.trivium_matrix) {
		for h := range s.keys[i] {
			list = append(list, of(&s.keys[i][h]))
		}
		return list
	}, func(*hardware.Sequence) int { return 0 })
}

// pool pools some matrices of each sequence, whose first row is at an offset.
func (s *session) pool(ctx context.Context, blockSize, every int, of func(sequence int) []C.trivium_matrix, offset func(*hardware.Sequence) int) ([]hardware.Pooled, error) {
	if blockSize < 1 {
		return nil, fmt.Errorf("cpu: block size %d: want at least 1", blockSize)
	}
	type part struct{ result, block, blocks, size int }
	const some = 16 // blocks of one part
	var results []hardware.Pooled
	var matrices []C.trivium_matrix
	var offsets []int
	var parts []part
	for i := range s.request.Sequences {
		first := offset(&s.request.Sequences[i])
		step := hardware.PoolStep(first, every)
		first /= step
		for _, m := range of(i) {
			m.rows = (m.rows + C.int64_t(step) - 1) / C.int64_t(step)
			m.stride *= C.int64_t(step)
			blocks := blockCount(first, int(m.rows), blockSize/step)
			for b := 0; b < blocks; b += some {
				parts = append(parts, part{len(results), b, min(some, blocks-b), blockSize / step})
			}
			results = append(results, hardware.Pooled{Blocks: blocks, Dim: int(m.cols), Data: make([]float32, blocks*int(m.cols))})
			matrices, offsets = append(matrices, m), append(offsets, first)
		}
	}
	err := forEach(ctx, threadCount(s.request.Threads, len(parts)), len(parts), func(_, i int) {
		p := &parts[i]
		rows, first := matrices[p.result], (floorDiv(offsets[p.result], p.size)+p.block)*p.size-offsets[p.result] // of whole blocks
		from, to := max(0, first), min(int(rows.rows), first+p.blocks*p.size)
		rows.data = unsafe.Add(rows.data, from*int(rows.stride)*hardware.Dtype(rows.dtype).Size())
		rows.rows = C.int64_t(to - from)
		mean := &results[p.result].Data[p.block*results[p.result].Dim]
		var pinned runtime.Pinner
		defer pinned.Unpin()
		pinned.Pin(mean)
		call := C.trivium_pool{
			rows: rows, offset: C.int64_t(offsets[p.result] + from), block_size: C.int64_t(p.size),
			mean: (*C.float)(unsafe.Pointer(mean)),
		}
		C.trivium_run_pool(s.pooling, &call)
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

func (b *backend) Dots(x, y hardware.Pooled) []float32 {
	product := make([]float32, x.Blocks*y.Blocks)
	if len(product) > 0 && x.Dim > 0 {
		floats := func(x []float32) *C.float { return (*C.float)(unsafe.Pointer(&x[0])) }
		C.trivium_run_dots(b.pooling, floats(x.Data), C.int64_t(x.Blocks), floats(y.Data), C.int64_t(y.Blocks), C.int64_t(x.Dim), floats(product))
	}
	return product
}

func (b *backend) Levels(t *hardware.TileLevels, level []uint8) {
	if t.Rows == 0 || t.Columns == 0 {
		return
	}
	var pinned runtime.Pinner
	defer pinned.Unpin()
	call := C.trivium_levels{
		low: pinnedData[C.int32_t](&pinned, t.Low), high: pinnedData[C.int32_t](&pinned, t.High),
		similarity: pinnedData[C.float](&pinned, t.Similarity), mass: pinnedData[C.float](&pinned, t.Mass),
		row: pinnedData[C.int32_t](&pinned, t.Row), part: pinnedData[C.int32_t](&pinned, t.Part),
		weight: pinnedData[C.float](&pinned, t.Weight), threshold: pinnedData[C.float](&pinned, t.Thresholds),
		level: pinnedData[C.uint8_t](&pinned, level),
		rows:  C.int64_t(t.Rows), columns: C.int64_t(t.Columns), probes: C.int64_t(len(t.Row)),
		parts: C.int32_t(t.Parts), reach: C.int32_t(len(t.Weight) / 2), levels: C.int32_t(len(t.Thresholds)),
	}
	C.trivium_run_levels(b.pooling, &call)
}

// pinnedData is where the values of a list lie, for C.
func pinnedData[C, Go any](pinned *runtime.Pinner, list []Go) *C {
	if len(list) == 0 {
		return nil
	}
	pinned.Pin(&list[0])
	return (*C)(unsafe.Pointer(&list[0]))
}
