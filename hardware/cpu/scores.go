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
	type group struct{ result, sequence, head, row, rows int }
	var results []hardware.RepresentativeScores
	var groups []group
	floats := 0
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		n, keys := min(rows, q.Query[0].Rows), q.Key[0].Rows
		for h := range q.Query {
			results = append(results, hardware.RepresentativeScores{
				Columns: make([]float32, keys), Slashes: make([]float32, keys), LSE: make([]float32, n), Rows: n,
			})
			for row := 0; row < n; row += C.TRIVIUM_REPRESENTATIVE_ROWS {
				groups = append(groups, group{len(results) - 1, i, h, row, min(C.TRIVIUM_REPRESENTATIVE_ROWS, n-row)})
				floats += 2 * keys
			}
		}
	}
	var sums memory
	defer sums.free()
	data, err := sums.alloc(C.size_t(floats) * C.sizeof_float)
	if err != nil {
		return nil, err
	}
	parts := unsafe.Slice((*float32)(data), floats)
	offsets := make([]int, len(groups)+1)
	for i, g := range groups {
		offsets[i+1] = offsets[i] + 2*len(results[g.result].Columns)
	}
	if err := s.scored(ctx, len(groups), func(worker, i int, pinned *runtime.Pinner) {
		g, r := &groups[i], &results[groups[i].result]
		lse := r.LSE[g.row : g.row+g.rows]
		pinned.Pin(&lse[0])
		call := C.trivium_representative{
			head: &s.heads[g.sequence][g.head], rows: C.int64_t(g.rows),
			row: C.int64_t(s.request.Sequences[g.sequence].Query[0].Rows - r.Rows + g.row),
			lse: (*C.float)(unsafe.Pointer(&lse[0])),
		}
		if keys := len(r.Columns); keys > 0 {
			call.columns = (*C.float)(unsafe.Pointer(&parts[offsets[i]]))
			call.slashes = (*C.float)(unsafe.Pointer(&parts[offsets[i]+keys]))
		}
		C.trivium_run_representative(s.kernels, &call, s.scratch[worker])
	}); err != nil {
		return nil, err
	}
	first := make([]int, len(results)+1) // group of each result
	for _, g := range groups {
		first[g.result+1]++
	}
	for i := range results {
		first[i+1] += first[i]
	}
	err = forEach(ctx, threadCount(s.request.Threads, len(results)), len(results), func(_, i int) {
		r := &results[i]
		for g := first[i]; g < first[i+1]; g++ {
			addMean(r.Columns, parts[offsets[g]:], r.Rows)
			addMean(r.Slashes, parts[offsets[g]+len(r.Columns):], r.Rows)
		}
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

func addMean(to, from []float32, n int) {
	scale := 1 / float32(n)
	for i, x := range from[:len(to)] {
		to[i] += x * scale
	}
}

func (s *session) RowMass(ctx context.Context, sets []hardware.RowSet, blockSize int) ([]hardware.RowMass, error) {
	if blockSize < 16 || blockSize%16 != 0 {
		return nil, fmt.Errorf("cpu: block size %d: want a multiple of 16", blockSize)
	}
	type group struct{ set, first, rows int }
	results := make([]hardware.RowMass, len(sets))
	orders := make([][]int32, 2*len(sets)) // rows in rising order, and the places of their results
	var groups []group
	for i, set := range sets {
		if err := s.checkRows(set); err != nil {
			return nil, err
		}
		orders[2*i], orders[2*i+1] = sortedRows(set.Rows)
		blocks := (s.request.Sequences[set.Sequence].Key[0].Rows + blockSize - 1) / blockSize
		results[i] = hardware.RowMass{Mass: make([]float32, len(set.Rows)*blocks), LSE: make([]float32, len(set.Rows))}
		for first := 0; first < len(set.Rows); first += C.TRIVIUM_QUERY_ROWS {
			groups = append(groups, group{i, first, min(C.TRIVIUM_QUERY_ROWS, len(set.Rows)-first)})
		}
	}
	slices.Reverse(groups) // later rows see more keys
	err := s.scored(ctx, len(groups), func(worker, i int, pinned *runtime.Pinner) {
		g, r := &groups[i], &results[groups[i].set]
		row, place := &orders[2*g.set][g.first], &orders[2*g.set+1][g.first]
		pinned.Pin(row)
		pinned.Pin(place)
		pinned.Pin(&r.LSE[0])
		call := C.trivium_row_mass{
			head: &s.heads[sets[g.set].Sequence][sets[g.set].Head], block_size: C.int64_t(blockSize), rows: C.int64_t(g.rows),
			row: (*C.int32_t)(unsafe.Pointer(row)), place: (*C.int32_t)(unsafe.Pointer(place)),
			lse: (*C.float)(unsafe.Pointer(&r.LSE[0])),
		}
		if len(r.Mass) > 0 {
			pinned.Pin(&r.Mass[0])
			call.mass = (*C.float)(unsafe.Pointer(&r.Mass[0]))
		}
		C.trivium_run_row_mass(s.kernels, &call, s.scratch[worker])
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// scored runs n calls that need scratch; what a call pins is let go after it.
func (s *session) scored(ctx context.Context, n int, call func(worker, i int, pinned *runtime.Pinner)) error {
	defer raiseOn(ctx, s.cancel)()
	if err := s.packAll(ctx); err != nil {
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

func (s *session) Pool(ctx context.Context, query bool, blockSize int) ([]hardware.Pooled, error) {
	if query {
		return s.pool(ctx, blockSize, func(i int) (list []C.trivium_matrix) {
			for h := range s.heads[i] {
				list = append(list, s.heads[i][h].query)
			}
			return list
		}, func(q *hardware.Sequence) int { return q.Offset })
	}
	return s.poolKeys(ctx, blockSize, func(k *C.trivium_keys) C.trivium_matrix { return k.key })
}

// poolKeys pools keys or values.
func (s *session) poolKeys(ctx context.Context, blockSize int, of func(*C.trivium_keys) C.trivium_matrix) ([]hardware.Pooled, error) {
	return s.pool(ctx, blockSize, func(i int) (list []C.trivium_matrix) {
		for h := range s.keys[i] {
			list = append(list, of(&s.keys[i][h]))
		}
		return list
	}, func(*hardware.Sequence) int { return 0 })
}

// pool pools some matrices of each sequence, whose first row is at an offset.
func (s *session) pool(ctx context.Context, blockSize int, of func(sequence int) []C.trivium_matrix, offset func(*hardware.Sequence) int) ([]hardware.Pooled, error) {
	if blockSize < 1 {
		return nil, fmt.Errorf("cpu: block size %d: want at least 1", blockSize)
	}
	type part struct{ result, block, blocks int }
	const some = 16 // blocks of one part
	var results []hardware.Pooled
	var matrices []C.trivium_matrix
	var offsets []int
	var parts []part
	for i := range s.request.Sequences {
		first := offset(&s.request.Sequences[i])
		for _, m := range of(i) {
			blocks := blockCount(first, int(m.rows), blockSize)
			for b := 0; b < blocks; b += some {
				parts = append(parts, part{len(results), b, min(some, blocks-b)})
			}
			results = append(results, hardware.Pooled{Blocks: blocks, Dim: int(m.cols), Data: make([]float32, blocks*int(m.cols))})
			matrices, offsets = append(matrices, m), append(offsets, first)
		}
	}
	err := forEach(ctx, threadCount(s.request.Threads, len(parts)), len(parts), func(_, i int) {
		p := &parts[i]
		rows, first := matrices[p.result], (floorDiv(offsets[p.result], blockSize)+p.block)*blockSize-offsets[p.result] // of whole blocks
		from, to := max(0, first), min(int(rows.rows), first+p.blocks*blockSize)
		rows.data = unsafe.Add(rows.data, from*int(rows.stride)*hardware.Dtype(rows.dtype).Size())
		rows.rows = C.int64_t(to - from)
		mean := &results[p.result].Data[p.block*results[p.result].Dim]
		var pinned runtime.Pinner
		defer pinned.Unpin()
		pinned.Pin(mean)
		call := C.trivium_pool{
			rows: rows, offset: C.int64_t(offsets[p.result] + from), block_size: C.int64_t(blockSize),
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
