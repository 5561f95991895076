package cuda

/*
#include "src/attend_args.h"
#include "src/table_args.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Tile is the rows and the keys of a tile of a mask.
const Tile = 128

// Mask is CSR over (sequence, head, query block) on the device: ascending key
// blocks of each row. Query blocks lie on multiples of Tile in position, so the
// first one of a chunk may have fewer rows; every sequence has as many rows of
// the mask as Attention.QueryBlocks says. Both arrays are int32.
type Mask struct{ RowPtr, Cols Address }

// Sequence is one sequence of a packed or padded batch: where its rows are in
// the tensors, and the position of its first query. Position 0 is its first key.
type Sequence struct {
	Batch             int // entry of the tensors' batch axis
	QueryRow, Queries int
	KeyRow, Keys      int
	Offset            int
}

// Attention is one call: out and lse of softmax(scale q k^T) v, causal by
// absolute position, over the tiles of Mask, or over all of them without one.
type Attention struct {
	Query, Key, Value, Out Tensor
	LSE                    Address // float32, natural logarithm
	LSEBatch, LSEHead      int64   // strides in elements
	Half                   bool    // fp16 instead of bf16
	Scale                  float32
	Offset                 int        // position of query row 0; without Sequences
	Sequences              []Sequence // nil: every batch entry is one, at Offset
	Full                   bool       // every query sees every key: not causal
	Mask                   *Mask      // nil: dense
	Rotated                *Tensor    // queries for distances from Band on, in place of Query; nil: one rotation for all
	Turn                   *Turn      // instead of Rotated, which it makes of Query
	Band                   int
	Window                 int     // > 0: keys at this distance and beyond drop out
	Softcap                float32 // > 0
	Sinks                  Address // float32 for each query head
}

func (a Attention) validate() error {
	for _, t := range []struct {
		name string
		Tensor
	}{{"q", a.Query}, {"k", a.Key}, {"v", a.Value}, {"out", a.Out}} {
		if err := t.validate(t.name); err != nil {
			return err
		}
	}
	q, k, v := a.Query, a.Key, a.Value
	if q.Dim != k.Dim || q.Dim != v.Dim || q.Dim != a.Out.Dim {
		return fmt.Errorf("cuda: head_dim %d, %d, %d, %d of q, k, v, out: want one", q.Dim, k.Dim, v.Dim, a.Out.Dim)
	}
	if q.Heads%k.Heads != 0 || k.Heads != v.Heads || k.Rows != v.Rows || q.Batch != k.Batch || q.Batch != v.Batch {
		return fmt.Errorf("cuda: q has %d x %d heads, k %d x %d of %d, v %d x %d of %d: want equal batches, k like v, q heads a multiple of k heads",
			q.Batch, q.Heads, k.Batch, k.Heads, k.Rows, v.Batch, v.Heads, v.Rows)
	}
	if a.Out.Rows != q.Rows || a.Out.Heads != q.Heads || a.Out.Batch != q.Batch || a.LSE == 0 {
		return fmt.Errorf("cuda: out and lse must have the shape of q and be given")
	}
	if err := a.validateRotated(); err != nil {
		return err
	}
	if a.Full && (a.Window > 0 || a.banded()) {
		return fmt.Errorf("cuda: a window of %d or bands without causality: distances are those of causal attention", a.Window)
	}
	if a.Offset < 0 || a.Window < 0 || a.Softcap < 0 {
		return fmt.Errorf("cuda: offset %d, window %d, softcap %g: want none of them negative", a.Offset, a.Window, a.Softcap)
	}
	return a.validateSequences()
}

// banded says whether there is a second rotation.
func (a Attention) banded() bool { return a.Rotated != nil || a.Turn != nil }

// mostBandedKeys is what the bits of a tile in the kernel leave for its number
// (kColumn).
const mostBandedKeys = Tile << 21

func (a Attention) validateRotated() error {
	if a.banded() && a.Band < 1 {
		return fmt.Errorf("cuda: the rotated q needs a distance of 1 or more, not %d", a.Band)
	}
	if a.banded() && a.Key.Rows > mostBandedKeys {
		return fmt.Errorf("cuda: two rotations over %d keys: at most %d", a.Key.Rows, mostBandedKeys)
	}
	if a.Rotated != nil && a.Turn != nil {
		return fmt.Errorf("cuda: the rotated q is given, and a turn that makes it: want one of them")
	}
	if a.Turn != nil {
		return a.Turn.validate(a.Query.Dim)
	}
	if a.Rotated == nil {
		return nil
	}
	if err := a.Rotated.validate("the rotated q"); err != nil {
		return err
	}
	q := a.Query
	if a.Rotated.Rows != q.Rows || a.Rotated.Heads != q.Heads || a.Rotated.Batch != q.Batch || a.Rotated.Dim != q.Dim {
		return fmt.Errorf("cuda: the rotated q needs the shape of q")
	}
	return nil
}

func (a Attention) validateSequences() error {
	if err := a.validateQueries(); err != nil {
		return err
	}
	for i, s := range a.Sequences {
		if s.KeyRow < 0 || s.Keys < 0 || s.KeyRow+s.Keys > a.Key.Rows || s.Offset < 0 {
			return fmt.Errorf("cuda: sequence %d has key rows [%d, %d) at offset %d: k has %d rows", i, s.KeyRow, s.KeyRow+s.Keys, s.Offset, a.Key.Rows)
		}
	}
	return nil
}

func (a Attention) validateQueries() error {
	for i, s := range a.Sequences {
		if s.Batch < 0 || s.Batch >= a.Query.Batch || s.QueryRow < 0 || s.Queries < 0 || s.QueryRow+s.Queries > a.Query.Rows {
			return fmt.Errorf("cuda: sequence %d has query rows [%d, %d) of batch entry %d: q has %d rows and %d entries",
				i, s.QueryRow, s.QueryRow+s.Queries, s.Batch, a.Query.Rows, a.Query.Batch)
		}
	}
	return nil
}

// longest is the most query rows of a sequence.
func (a Attention) longest() int {
	if a.Sequences == nil {
		return a.Query.Rows
	}
	most := 0
	for _, s := range a.Sequences {
		most = max(most, s.Queries)
	}
	return most
}

// QueryBlocks is the rows of the mask that each head of each sequence has.
func (a Attention) QueryBlocks() int {
	if a.Sequences == nil {
		return ceilDiv(a.Offset%Tile+a.Query.Rows, Tile)
	}
	most := 0
	for _, s := range a.Sequences {
		most = max(most, ceilDiv(s.Offset%Tile+s.Queries, Tile))
	}
	return most
}

func (a Attention) sequences() int {
	if a.Sequences == nil {
		return a.Query.Batch
	}
	return len(a.Sequences)
}

func (a Attention) features() []Feature {
	var f []Feature
	if a.banded() {
		f = append(f, Bands)
	}
	if a.Turn != nil {
		f = append(f, a.Turn.define())
	}
	if a.Window > 0 {
		f = append(f, Window)
	}
	if a.Softcap > 0 {
		f = append(f, Softcap)
	}
	if a.Sinks != 0 {
		f = append(f, Sinks)
	}
	return f
}

// attendShared is the dynamic shared memory of the sm_90a kernel: the query
// tiles, two stages of K and V, the output tile, barriers, plans and angles.
func (a Attention) attendShared() int {
	rotations, rest := 1, 1024
	if a.banded() {
		rotations = 2
	}
	if a.Turn != nil {
		rest = 2048
	}
	return (5+rotations)*Tile*compiledDim(a.Query.Dim)*2 + 1024 + rest
}

// Attend starts attention on the queue; it does not wait. Few queries over many
// keys are split over the keys.
func (q *Queue) Attend(a Attention) error {
	if err := a.validate(); err != nil {
		return err
	}
	if a.sequences() == 0 || a.longest() == 0 {
		return nil
	}
	decodes := a.decodes()
	if a.Turn != nil && (decodes || !q.device.TurnsWhileAttending(*a.Turn)) {
		var err error
		if a, err = q.withRotated(a); err != nil {
			return err
		}
	}
	if decodes {
		return q.decode(a)
	}
	args, err := q.attendArgs(a, Tile)
	if err != nil {
		return err
	}
	if q.device.Capability == 90 {
		return q.attendHopper(a, args)
	}
	return q.attendPlain(a, args)
}

// rotated is the second query tensor, or the first where there is none.
func (a Attention) rotated() (t Tensor, rotations int) {
	if a.Rotated != nil {
		return *a.Rotated, 2
	}
	return a.Query, 1
}

func (q *Queue) attendHopper(a Attention, shared C.AttendArgs) error {
	rotated, _ := a.rotated()
	const warpRows = 16 // that a warp writes at once
	boxes := [...]struct {
		of   Tensor
		rows int
	}{{a.Query, Tile}, {rotated, Tile}, {a.Key, Tile}, {a.Value, Tile}, {a.Out, warpRows}}
	maps := make([]tensorMap, len(boxes))
	for i, box := range boxes {
		var err error
		if maps[i], err = q.device.tensorMap(box.of, box.rows, a.Half); err != nil {
			return err
		}
	}
	args := C.AttendTurnArgs{a: shared} // whose head is what the kernel takes without a turn
	if a.Turn != nil {
		args.turn = a.Turn.table()
	}
	return q.launch(launch{
		kernel: attendKernel("attend_sm90.cu", 90, true, a.Query.Dim, a.Half, a.features()...),
		entry:  "attend", grid: [3]int{min(q.device.Processors, items(&shared)), 1}, threads: 384,
		shared: a.attendShared(), maps: maps, args: unsafe.Pointer(&args),
	})
}

// items counts the query blocks of all heads.
func items(args *C.AttendArgs) int { return int(args.batch) * int(args.q_heads) * int(args.q_blocks) }

// plainShared is the dynamic shared memory of the sm_80 kernel: the query
// tiles and two stages of 64 keys and values.
func plainShared(headDim, rotations int) int { return rotations*Tile*headDim*2 + 4*64*headDim*2 }

func (q *Queue) attendPlain(a Attention, shared C.AttendArgs) error {
	_, rotations := a.rotated()
	args := plainArgs(a, shared)
	return q.launch(launch{
		kernel: attendKernel("attend_sm80.cu", 80, false, a.Query.Dim, a.Half, a.features()...),
		entry:  "attend_plain", grid: [3]int{items(&args.a), 1}, threads: 256,
		shared: plainShared(compiledDim(a.Query.Dim), rotations), args: unsafe.Pointer(&args),
	})
}

// plainArgs adds the tensors, for the kernels that read them by address.
func plainArgs(a Attention, shared C.AttendArgs) C.AttendPlainArgs {
	rotated, _ := a.rotated()
	return C.AttendPlainArgs{
		a: shared,
		q: C.ulonglong(a.Query.Data), q2: C.ulonglong(rotated.Data), k: C.ulonglong(a.Key.Data), v: C.ulonglong(a.Value.Data),
		q_batch: C.longlong(a.Query.StrideB), q_head: C.longlong(a.Query.StrideH), q_row: C.longlong(a.Query.Stride),
		q2_batch: C.longlong(rotated.StrideB), q2_head: C.longlong(rotated.StrideH), q2_row: C.longlong(rotated.Stride),
		k_batch: C.longlong(a.Key.StrideB), k_head: C.longlong(a.Key.StrideH), k_row: C.longlong(a.Key.Stride),
		v_batch: C.longlong(a.Value.StrideB), v_head: C.longlong(a.Value.StrideH), v_row: C.longlong(a.Value.Stride),
	}
}

// attendArgs are the arguments without the tensors that are read. Query blocks
// lie on multiples of align in position.
func (q *Queue) attendArgs(a Attention, align int) (C.AttendArgs, error) {
	whole := a.aligned(Sequence{Queries: a.Query.Rows, Keys: a.Key.Rows, Offset: a.Offset}, align)
	args := C.AttendArgs{
		out: C.ulonglong(a.Out.Data), lse: C.ulonglong(a.LSE), sinks: C.ulonglong(a.Sinks), counter: C.ulonglong(q.counter),
		out_batch: C.longlong(a.Out.StrideB), out_head: C.longlong(a.Out.StrideH), out_row: C.longlong(a.Out.Stride),
		lse_batch: C.longlong(a.LSEBatch), lse_head: C.longlong(a.LSEHead),
		batch: C.int(a.sequences()), q_heads: C.int(a.Query.Heads), kv_heads: C.int(a.Key.Heads),
		q_blocks: C.int(a.QueryBlocks()), q_len: whole.q_len, k_len: whole.k_len, q_offset: whole.q_offset, skip: whole.skip,
		head_dim: C.int(a.Query.Dim), k_rows: C.int(a.Key.Rows), band: C.int(a.Band), window: C.int(a.Window),
		scale: C.float(a.Scale), softcap: C.float(a.Softcap),
	}
	if a.Mask != nil {
		args.row_ptr, args.cols = C.ulonglong(a.Mask.RowPtr), C.ulonglong(a.Mask.Cols)
	}
	if a.Sequences == nil {
		return args, nil
	}
	rows := make([]C.Sequence, len(a.Sequences))
	for i, s := range a.Sequences {
		rows[i] = a.aligned(s, align)
	}
	table, err := q.storeSequences(rows)
	args.sequences = C.ulonglong(table)
	return args, err
}

// aligned moves the start of a sequence down to a multiple of align in
// position. Without causality every position lies behind all keys.
func (a Attention) aligned(s Sequence, align int) C.Sequence {
	skip, offset := s.Offset%align, s.Offset
	if a.Full {
		offset = s.Keys + skip
	}
	return C.Sequence{
		q_row: C.int(s.QueryRow - skip), q_len: C.int(s.Queries + skip), k_row: C.int(s.KeyRow), k_len: C.int(s.Keys),
		q_offset: C.int(offset - skip), skip: C.int(skip), box: C.int(s.Batch),
	}
}

// storeSequences puts them into the queue's memory, in the order of its work.
func (q *Queue) storeSequences(rows []C.Sequence) (Address, error) {
	size := int(unsafe.Sizeof(C.Sequence{}))
	if err := q.room(&q.table, len(rows)*size); err != nil {
		return 0, err
	}
	for first := 0; first < len(rows); first += C.kTableRows {
		args := C.TableArgs{table: C.ulonglong(q.table.at + Address(first*size))}
		args.count = C.int(copy(args.rows[:], rows[first:]))
		err := q.launch(launch{kernel: Kernel{Source: "table.cu", Least: 80}, entry: "store_table", grid: [3]int{1, 1},
			threads: C.kTableRows, args: unsafe.Pointer(&args)})
		if err != nil {
			return 0, err
		}
	}
	return q.table.at, nil
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
