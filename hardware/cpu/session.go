package cpu

// #include "support.h"
import "C"

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// session is a prepared attention call. What C reads of it lies in C memory;
// the Go memory it points to is pinned until Close.
type session struct {
	kernels *C.trivium_kernels
	pooling *C.trivium_kernels
	request *hardware.Problem
	problem *C.trivium_problem
	cancel  *int32
	heads   [][]C.trivium_head // for each sequence and query head
	keys    [][]C.trivium_keys // for each sequence and kv head
	scratch []unsafe.Pointer   // for each thread
	apart   *session           // the same without values; nil: not made
	memory  memory
	pinned  runtime.Pinner
}

var _ hardware.Session = (*session)(nil)

func (b *backend) Prepare(ctx context.Context, p *hardware.Problem) (hardware.Session, error) {
	if err := check(p); err != nil {
		return nil, err
	}
	s := &session{kernels: b.kernels, pooling: b.pooling, request: p}
	if err := s.prepare(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) prepare(ctx context.Context) error {
	flag, err := array[int32](&s.memory, 1)
	if err != nil {
		return err
	}
	s.cancel = &flag[0]
	defer raiseOn(ctx, s.cancel)()
	variants, err := s.describe()
	if err != nil {
		return err
	}
	if err := s.rotate(ctx, variants); err != nil {
		return err
	}
	if err := s.packRoom(func(sequence int) bool { return !s.few(sequence) }); err != nil {
		return err
	}
	return ctx.Err()
}

func (s *session) Precision() hardware.Precision {
	if C.trivium_halves(s.kernels, s.problem) == 0 {
		return hardware.Highest
	}
	for _, keys := range s.keys {
		if keys[0].packed != nil { // few rows read each key once, and multiply it in float32
			return hardware.High
		}
	}
	return hardware.Highest
}

// few says whether a sequence, as in decoding, has so few rows that packing all
// of its keys would cost more than attending to them.
func (s *session) few(sequence int) bool {
	q := &s.request.Sequences[sequence]
	return len(q.Query)/len(q.Key)*q.Query[0].Rows <= splitRows
}

// packRoomForAll makes the room that Prepare left out, for operations that need it.
func (s *session) packRoomForAll() error {
	return s.packRoom(func(sequence int) bool { return s.keys[sequence][0].packed == nil })
}

// describe fills problem, keys and heads, all but rotations and packed keys.
func (s *session) describe() (variants, error) {
	p := s.request
	v := newVariants(p.Positions)
	problem, err := array[C.trivium_problem](&s.memory, 1)
	if err != nil {
		return v, err
	}
	bands, err := array[C.trivium_band](&s.memory, len(v.bands))
	if err != nil {
		return v, err
	}
	copy(bands, v.bands)
	first := &p.Sequences[0]
	problem[0] = C.trivium_problem{
		band: &bands[0], bands: C.int32_t(len(bands)), cancel: (*C.int32_t)(s.cancel),
		scale: C.float(p.Scale * v.scale), softcap: C.float(p.Softcap), window: C.int64_t(p.Window), causal: flagOf(p.Causal),
		key_dim: C.int32_t(first.Key[0].Cols), value_dim: C.int32_t(first.Value[0].Cols),
		half: C.int32_t(v.half), interleaved: flagOf(v.interleaved),
		query_variants: C.int32_t(len(v.query)), key_variants: C.int32_t(len(v.key)),
		dtype: C.int32_t(commonDtype(p)), high: flagOf(p.Precision == hardware.High),
	}
	s.problem = &problem[0]
	for i := range p.Sequences {
		if err := s.describeSequence(&p.Sequences[i]); err != nil {
			return v, err
		}
	}
	return v, nil
}

func (s *session) describeSequence(q *hardware.Sequence) error {
	keys, err := array[C.trivium_keys](&s.memory, len(q.Key))
	if err != nil {
		return err
	}
	heads, err := array[C.trivium_head](&s.memory, len(q.Query))
	if err != nil {
		return err
	}
	for h := range keys {
		keys[h].key, keys[h].value = s.matrix(q.Key[h]), s.matrix(q.Value[h])
	}
	group := len(q.Query) / len(q.Key)
	for h := range heads {
		heads[h] = C.trivium_head{problem: s.problem, keys: &keys[h/group], query: s.matrix(q.Query[h]), offset: C.int64_t(q.Offset)}
	}
	for _, o := range q.Output {
		s.matrix(o)
	}
	for _, lse := range q.LSE {
		if len(lse) > 0 {
			s.pinned.Pin(&lse[0])
		}
	}
	s.keys, s.heads = append(s.keys, keys), append(s.heads, heads)
	return nil
}

// packRoom makes room for the keys and values of some sequences in the kernels'
// own layout. What attends packs there what it needs, as it needs it, while it is
// near.
func (s *session) packRoom(wanted func(sequence int) bool) error {
	for i, keys := range s.keys {
		if !wanted(i) {
			continue
		}
		for h := range keys {
			rows := keys[h].key.rows
			packed, err := s.memory.alloc(C.trivium_pack_bytes(s.kernels, s.problem, rows))
			if err != nil {
				return err
			}
			chunks := (int(rows) + C.TRIVIUM_PACK_ROWS - 1) / C.TRIVIUM_PACK_ROWS
			states, err := array[C.uint32_t](&s.memory, 2*chunks+1)
			if err != nil {
				return err
			}
			keys[h].packed, keys[h].keys_state, keys[h].values_state = packed, &states[0], &states[chunks]
		}
	}
	return nil
}

// packKeys packs the keys of all sequences.
func (s *session) packKeys(ctx context.Context) error {
	if err := s.packRoomForAll(); err != nil {
		return err
	}
	const chunk = 4 * C.TRIVIUM_PACK_ROWS
	type part struct{ keys, head, row int }
	var parts []part
	for i, keys := range s.keys {
		for h := range keys {
			for row := 0; row < int(keys[h].key.rows); row += chunk {
				parts = append(parts, part{i, h, row})
			}
		}
	}
	return forEach(ctx, threadCount(s.request.Threads, len(parts)), len(parts), func(_, i int) {
		k := &s.keys[parts[i].keys][parts[i].head]
		rows := min(chunk, int(k.key.rows)-parts[i].row)
		C.trivium_pack(s.kernels, s.problem, k, C.int64_t(parts[i].row), C.int64_t(rows))
	})
}

// workers makes scratch for the threads that will work on n items and says how
// many those are.
func (s *session) workers(n int) (int, error) {
	keys := C.int64_t(0)
	for _, k := range s.keys {
		keys = max(keys, k[0].key.rows)
	}
	return s.workersFor(n, keys)
}

func (s *session) workersFor(n int, keys C.int64_t) (int, error) {
	threads := threadCount(s.request.Threads, n)
	for len(s.scratch) < threads {
		memory, err := s.memory.alloc(C.trivium_scratch_bytes(s.kernels, s.problem, keys))
		if err != nil {
			return 0, err
		}
		s.scratch = append(s.scratch, memory)
	}
	return threads, nil
}

// matrix is m for C, pinned.
func (s *session) matrix(m hardware.Matrix) C.trivium_matrix {
	if m.Data != nil {
		s.pinned.Pin(m.Data)
	}
	return C.trivium_matrix{data: m.Data, rows: C.int64_t(m.Rows), stride: C.int64_t(m.Stride), cols: C.int32_t(m.Cols), dtype: C.int32_t(m.Dtype)}
}

// Close releases the session's memory.
func (s *session) Close() {
	if s.apart != nil {
		s.apart.Close()
	}
	s.pinned.Unpin()
	s.memory.free()
	s.keys, s.heads, s.scratch = nil, nil, nil
}

func flagOf(b bool) C.int32_t {
	if b {
		return 1
	}
	return 0
}

// commonDtype is the dtype of all inputs, Float32 where they differ.
func commonDtype(p *hardware.Problem) hardware.Dtype {
	d := p.Sequences[0].Query[0].Dtype
	for i := range p.Sequences {
		q := &p.Sequences[i]
		for _, list := range [][]hardware.Matrix{q.Query, q.Key, q.Value} {
			for _, m := range list {
				if m.Dtype != d {
					return hardware.Float32
				}
			}
		}
	}
	return d
}

// check refuses what kernels cannot take.
func check(p *hardware.Problem) error {
	if len(p.Sequences) == 0 || len(p.Sequences[0].Key) == 0 {
		return fmt.Errorf("cpu: no sequences or no kv heads: want at least one")
	}
	if p.Scale == 0 || math.IsNaN(p.Scale) || math.IsInf(p.Scale, 0) {
		return fmt.Errorf("cpu: scale %g: want a finite number that is not 0", p.Scale)
	}
	first := &p.Sequences[0]
	heads, kvHeads := len(first.Query), len(first.Key)
	if heads == 0 || heads%kvHeads != 0 {
		return fmt.Errorf("cpu: %d query heads for %d kv heads: want a multiple", heads, kvHeads)
	}
	if p.Sinks != nil && len(p.Sinks) != heads {
		return fmt.Errorf("cpu: %d sinks for %d query heads: want one each", len(p.Sinks), heads)
	}
	dim, valueDim := first.Key[0].Cols, first.Value[0].Cols
	if dim < 1 || dim > 256 || valueDim < 1 || valueDim > 256 {
		return fmt.Errorf("cpu: head_dim %d, of values %d: want 1 to 256", dim, valueDim)
	}
	if p.Positions != nil && (len(p.Positions.Bands) < 1 || len(p.Positions.Bands) > 256 || len(p.Positions.InvFreq) != len(p.Positions.Applied)) {
		return fmt.Errorf("cpu: %d bands, %d frequencies, %d applied: want 1 to 256 bands, and as many frequencies as were applied",
			len(p.Positions.Bands), len(p.Positions.InvFreq), len(p.Positions.Applied))
	}
	if p.Positions != nil && 2*len(p.Positions.InvFreq) > dim {
		return fmt.Errorf("cpu: %d rotary frequencies: want at most half of head_dim %d", len(p.Positions.InvFreq), dim)
	}
	for i := range p.Sequences {
		if err := checkSequence(&p.Sequences[i], heads, kvHeads, dim, valueDim); err != nil {
			return fmt.Errorf("cpu: sequence %d: %w", i, err)
		}
	}
	return nil
}

func checkSequence(q *hardware.Sequence, heads, kvHeads, dim, valueDim int) error {
	// Without an output a session only scores.
	if len(q.Query) != heads || (q.Output != nil && len(q.Output) != heads) || len(q.Key) != kvHeads || len(q.Value) != kvHeads {
		return fmt.Errorf("%d query, %d output, %d key, %d value heads: want %d, %d, %d, %d",
			len(q.Query), len(q.Output), len(q.Key), len(q.Value), heads, heads, kvHeads, kvHeads)
	}
	if q.LSE != nil && len(q.LSE) != heads {
		return fmt.Errorf("%d lse rows: want %d or nil", len(q.LSE), heads)
	}
	rows, keys := q.Query[0].Rows, q.Key[0].Rows
	for h := range heads {
		if err := checkMatrix(q.Query[h], rows, dim); err != nil {
			return fmt.Errorf("query head %d: %w", h, err)
		}
		if err := checkOutput(q, h, rows, valueDim); err != nil {
			return err
		}
		if q.LSE != nil && q.LSE[h] != nil && len(q.LSE[h]) != rows {
			return fmt.Errorf("lse of head %d has %d values: want %d", h, len(q.LSE[h]), rows)
		}
	}
	for h := range kvHeads {
		if err := checkMatrix(q.Key[h], keys, dim); err != nil {
			return fmt.Errorf("key head %d: %w", h, err)
		}
		if err := checkMatrix(q.Value[h], keys, valueDim); err != nil {
			return fmt.Errorf("value head %d: %w", h, err)
		}
	}
	return nil
}

func checkOutput(q *hardware.Sequence, h, rows, valueDim int) error {
	if q.Output == nil {
		return nil
	}
	if err := checkMatrix(q.Output[h], rows, valueDim); err != nil {
		return fmt.Errorf("output head %d: %w", h, err)
	}
	if q.Output[h].Dtype != q.Query[h].Dtype {
		return fmt.Errorf("output head %d has dtype %d: want %d as the query", h, q.Output[h].Dtype, q.Query[h].Dtype)
	}
	return nil
}

func checkMatrix(m hardware.Matrix, rows, cols int) error {
	if m.Rows != rows || m.Cols != cols || m.Dtype > hardware.Float16 || (m.Data == nil && rows > 0) {
		return fmt.Errorf("%d x %d of dtype %d: want %d x %d of dtype float32, bfloat16 or float16", m.Rows, m.Cols, m.Dtype, rows, cols)
	}
	return nil
}
