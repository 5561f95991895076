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

// derive is a session for scores of other rows than the tokens' own: plain
// positions, no softcap, no values.
func (s *session) derive() (*session, error) {
	d := &session{kernels: s.kernels, pooling: s.pooling, request: s.request, cancel: s.cancel}
	problem, err := array[C.trivium_problem](&d.memory, 1)
	if err != nil {
		return d, err
	}
	band, err := array[C.trivium_band](&d.memory, 1)
	if err != nil {
		return d, err
	}
	band[0] = C.trivium_band{chunk: 1, low: math.MinInt64, high: math.MaxInt64}
	problem[0] = *s.problem
	d.problem = &problem[0]
	d.problem.band, d.problem.bands, d.problem.softcap, d.problem.value_dim = &band[0], 1, 0, 0
	d.problem.half, d.problem.query_variants, d.problem.key_variants = 0, 1, 1
	return d, nil
}

// rows makes room for the heads and keys of a sequence.
func (s *session) rows(heads, keys int) ([]C.trivium_head, []C.trivium_keys, error) {
	rotation, err := array[C.trivium_rotation](&s.memory, 1)
	if err != nil {
		return nil, nil, err
	}
	k, err := array[C.trivium_keys](&s.memory, keys)
	if err != nil {
		return nil, nil, err
	}
	h, err := array[C.trivium_head](&s.memory, heads)
	if err != nil {
		return nil, nil, err
	}
	for i := range k {
		k[i].rotation = &rotation[0]
	}
	for i := range h {
		h[i].problem, h[i].rotation = s.problem, &rotation[0]
	}
	s.keys, s.heads = append(s.keys, k), append(s.heads, h)
	return h, k, nil
}

// withKey sets the keys; there are as many values, of no columns.
func withKey(k *C.trivium_keys, m C.trivium_matrix) {
	k.key, k.value = m, m
	k.value.cols = 0
}

// everyOther is the rows first, first+step, ... of a matrix.
func everyOther(m C.trivium_matrix, first, step int) C.trivium_matrix {
	rows := int(m.rows)
	m.stride *= C.int64_t(step)
	if m.rows = 0; first < rows {
		m.rows = C.int64_t((rows-1-first)/step + 1)
		m.data = unsafe.Add(m.data, first*int(m.stride)/step*hardware.Dtype(m.dtype).Size())
	}
	return m
}

// blockScores makes results, which stay pinned until the session is closed.
func (s *session) blockScores(size int) []hardware.BlockScores {
	var all []hardware.BlockScores
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		for range q.Query {
			b := hardware.BlockScores{QueryBlocks: blockCount(q.Offset, q.Query[0].Rows, size), KeyBlocks: (q.Key[0].Rows + size - 1) / size}
			b.Score = make([]float32, b.QueryBlocks*b.KeyBlocks)
			if len(b.Score) > 0 {
				s.pinned.Pin(&b.Score[0])
			}
			all = append(all, b)
		}
	}
	return all
}

func (s *session) SquareMass(ctx context.Context, stride, blockSize int, scale float64) ([]hardware.BlockScores, error) {
	if stride < 1 || stride > 256 || blockSize < stride || blockSize%stride != 0 || !s.request.Causal {
		return nil, fmt.Errorf("cpu: squares of %d in blocks of %d, causal %v: want causal, and a stride of at most 256 that divides the block", stride, blockSize, s.request.Causal)
	}
	d, err := s.squares(stride, scale)
	if err != nil {
		d.Close()
		return nil, err
	}
	defer d.Close()
	defer raiseOn(ctx, s.cancel)()
	if err := d.packKeys(ctx); err != nil {
		return nil, err
	}
	results, perBlock := d.blockScores(blockSize), blockSize/stride
	items := squareItems(s.request.Sequences, stride, perBlock)
	keys := 0
	for _, r := range results {
		keys = max(keys, r.KeyBlocks*max(perBlock, 16))
	}
	threads, err := d.workersFor(len(items), C.int64_t(keys))
	if err != nil {
		return nil, err
	}
	heads := len(s.request.Sequences[0].Query)
	err = forEach(ctx, threads, len(items), func(worker, i int) {
		item := &items[i]
		r := &results[item.sequence*heads+item.head]
		if r.KeyBlocks == 0 {
			return
		}
		first := s.request.Sequences[item.sequence].Offset / blockSize
		for row := item.first; row < item.last; {
			rows := min(item.last-row, C.TRIVIUM_QUERY_ROWS)
			call := C.trivium_square_mass{
				part: &d.heads[item.sequence][item.head*stride], parts: C.int32_t(stride),
				row: C.int64_t(row), rows: C.int64_t(rows), block_size: C.int64_t(perBlock),
			}
			call.mass = (*C.float)(unsafe.Pointer(&r.Row(row/perBlock - first)[0]))
			C.trivium_run_square_mass(d.kernels, &call, d.scratch[worker])
			row += rows
		}
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// squareItem is some squares of one head: those of whole query blocks.
type squareItem struct{ sequence, head, first, last int }

// squareItems lists them, the longest first.
func squareItems(sequences []hardware.Sequence, stride, perBlock int) []squareItem {
	step := max(1, C.TRIVIUM_QUERY_ROWS/perBlock) * perBlock
	var items []squareItem
	for i := range sequences {
		q := &sequences[i]
		if q.Query[0].Rows == 0 {
			continue
		}
		begin, end := q.Offset/stride, (q.Offset+q.Query[0].Rows-1)/stride+1
		for first := (end - 1) / step * step; first+step > begin; first -= step {
			for h := range q.Query {
				items = append(items, squareItem{i, h, max(first, begin), min(first+step, end)})
			}
		}
	}
	return items
}

// squares describes the rows of each head by their place in their square, as
// parts: part t has the queries in place stride-1-t, and the keys in place t.
func (s *session) squares(stride int, scale float64) (*session, error) {
	d, err := s.derive()
	if err != nil {
		return d, err
	}
	d.problem.scale = C.float(scale)
	d.problem.query_variants = C.int32_t(stride) // scratch for the queries of each part
	if w := s.request.Window; w > 0 {            // squares with a visible pair
		d.problem.window = C.int64_t((w+int64(stride)-2)/int64(stride) + 1)
	}
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		heads, keys, err := d.rows(len(q.Query)*stride, len(q.Key)*stride)
		if err != nil {
			return d, err
		}
		for k := range keys {
			withKey(&keys[k], everyOther(s.keys[i][k/stride].key, k%stride, stride))
		}
		group := len(q.Query) / len(q.Key)
		for h := range heads {
			head, t := h/stride, h%stride
			row := floorDiv(q.Offset+t, stride) // the first square with this part
			heads[h].query = everyOther(s.heads[i][head].query, row*stride+stride-1-t-q.Offset, stride)
			heads[h].offset = C.int64_t(row)
			heads[h].keys = &keys[head/group*stride+t]
		}
	}
	return d, nil
}

func (s *session) MeanScores(ctx context.Context, blockSize int) ([]hardware.BlockScores, error) {
	if !s.request.Causal {
		return nil, fmt.Errorf("cpu: mean scores without causality: want a causal problem")
	}
	means, err := s.Pool(ctx, false, blockSize, 1)
	if err != nil {
		return nil, err
	}
	d, err := s.means(means, nil)
	if err != nil {
		d.Close()
		return nil, err
	}
	defer d.Close()
	defer raiseOn(ctx, s.cancel)()
	if err := d.packKeys(ctx); err != nil {
		return nil, err
	}
	type item struct{ sequence, head, block, row, rows int }
	var items []item
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		eachBlock(q, blockSize, func(block, row, rows int) {
			for h := range q.Query {
				items = append(items, item{i, h, block, row, rows})
			}
		})
	}
	threads, err := d.workers(len(items))
	if err != nil {
		return nil, err
	}
	results, heads := d.blockScores(blockSize), len(s.request.Sequences[0].Query)
	err = forEach(ctx, threads, len(items), func(worker, i int) {
		item := &items[len(items)-1-i] // the longest first
		q := &s.request.Sequences[item.sequence]
		r := &results[item.sequence*heads+item.head]
		position := floorDiv(q.Offset, blockSize) + item.block
		first, last := 0, min(position, r.KeyBlocks)
		if s.request.Window > 0 {
			first = max(0, position*blockSize-int(s.request.Window)+1) / blockSize
		}
		if first >= last {
			return
		}
		call := C.trivium_column_score{
			head: &d.heads[item.sequence][item.head], row: C.int64_t(item.row), rows: C.int64_t(item.rows),
			first: C.int64_t(first), last: C.int64_t(last),
		}
		call.score = (*C.float)(unsafe.Pointer(&r.Row(item.block)[first]))
		C.trivium_run_column_score(d.kernels, &call, d.scratch[worker])
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// means describes the queries as they are, and block means as keys, with values
// beside them if there are any.
func (s *session) means(means, values []hardware.Pooled) (*session, error) {
	d, err := s.derive()
	if err != nil {
		return d, err
	}
	d.problem.scale, d.problem.dtype = C.float(s.request.Scale), C.TRIVIUM_FLOAT32
	d.problem.softcap = s.problem.softcap
	d.problem.causal, d.problem.window = 0, 0
	if values != nil {
		d.problem.value_dim = s.problem.value_dim
	}
	for i := range s.request.Sequences {
		q := &s.request.Sequences[i]
		heads, keys, err := d.rows(len(q.Query), len(q.Key))
		if err != nil {
			return d, err
		}
		for k := range keys {
			withKey(&keys[k], d.pooled(means[k]))
			if values != nil {
				keys[k].value = d.pooled(values[k])
			}
		}
		means = means[len(keys):]
		if values != nil {
			values = values[len(keys):]
		}
		for h := range heads {
			heads[h].query, heads[h].offset = s.heads[i][h].query, s.heads[i][h].offset
			heads[h].keys = &keys[h*len(keys)/len(heads)]
		}
	}
	return d, nil
}

// pooled is means for C, pinned.
func (s *session) pooled(p hardware.Pooled) C.trivium_matrix {
	m := hardware.Matrix{Dtype: hardware.Float32, Rows: p.Blocks, Cols: p.Dim, Stride: p.Dim}
	if m.Rows > 0 {
		m.Data = unsafe.Pointer(&p.Data[0])
	}
	return s.matrix(m)
}
