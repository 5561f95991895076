package cuda

/*
#include "src/attend_args.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Tile is the rows and the keys of a tile of a mask.
const Tile = 128

// Mask is CSR over (batch, head, query block) on the device: ascending key
// blocks of each row. Both arrays are int32.
type Mask struct{ RowPtr, Cols Address }

// Attention is one call: out and lse of softmax(scale q k^T) v, causal by
// absolute position, over the tiles of Mask, or over all of them without one.
type Attention struct {
	Query, Key, Value, Out Tensor
	LSE                    Address // float32, natural logarithm
	LSEBatch, LSEHead      int64   // strides in elements
	Half                   bool    // fp16 instead of bf16
	Scale                  float32
	Offset                 int   // position of query row 0
	Mask                   *Mask // nil: dense
	Rotated                *Tensor
	Band                   int     // distances from here use Rotated in place of Query; with Rotated
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
	if a.Rotated != nil {
		if err := a.Rotated.validate("the rotated q"); err != nil {
			return err
		}
		if a.Band < 1 || a.Rotated.Rows != q.Rows || a.Rotated.Heads != q.Heads || a.Rotated.Batch != q.Batch || a.Rotated.Dim != q.Dim {
			return fmt.Errorf("cuda: the rotated q needs the shape of q and a distance of 1 or more, not %d", a.Band)
		}
	}
	return nil
}

func (a Attention) features() []Feature {
	var f []Feature
	if a.Rotated != nil {
		f = append(f, Bands)
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
// tiles, two stages of K and V, the output tile, barriers and plans.
func attendShared(headDim, rotations int) int { return (5+rotations)*Tile*headDim*2 + 1024 + 768 }

// Attend starts the kernel on the queue; it does not wait.
func (q *Queue) Attend(a Attention) error {
	if err := a.validate(); err != nil {
		return err
	}
	if q.device.Capability == 90 {
		return q.attendHopper(a)
	}
	return q.attendPlain(a)
}

// rotated is the second query tensor, or the first where there is none.
func (a Attention) rotated() (t Tensor, rotations int) {
	if a.Rotated != nil {
		return *a.Rotated, 2
	}
	return a.Query, 1
}

func (q *Queue) attendHopper(a Attention) error {
	rotated, rotations := a.rotated()
	maps := make([]tensorMap, 4)
	for i, t := range []Tensor{a.Query, rotated, a.Key, a.Value} {
		var err error
		if maps[i], err = q.device.tensorMap(t, a.Half); err != nil {
			return err
		}
	}
	args := q.attendArgs(a)
	return q.launch(launch{
		kernel: attendKernel("attend_sm90.cu", 90, true, a.Query.Dim, a.Half, a.features()...),
		entry:  "attend", grid: [3]int{min(q.device.Processors, items(&args)), 1}, threads: 384,
		shared: attendShared(a.Query.Dim, rotations), maps: maps, args: unsafe.Pointer(&args),
	})
}

// items counts the query blocks of all heads.
func items(args *C.AttendArgs) int { return int(args.batch) * int(args.q_heads) * int(args.q_blocks) }

// plainShared is the dynamic shared memory of the sm_80 kernel: the query
// tiles and two stages of 64 keys and values.
func plainShared(headDim, rotations int) int { return rotations*Tile*headDim*2 + 4*64*headDim*2 }

func (q *Queue) attendPlain(a Attention) error {
	rotated, rotations := a.rotated()
	args := C.AttendPlainArgs{
		a: q.attendArgs(a),
		q: C.ulonglong(a.Query.Data), q2: C.ulonglong(rotated.Data), k: C.ulonglong(a.Key.Data), v: C.ulonglong(a.Value.Data),
		q_batch: C.longlong(a.Query.StrideB), q_head: C.longlong(a.Query.StrideH), q_row: C.longlong(a.Query.Stride),
		q2_batch: C.longlong(rotated.StrideB), q2_head: C.longlong(rotated.StrideH), q2_row: C.longlong(rotated.Stride),
		k_batch: C.longlong(a.Key.StrideB), k_head: C.longlong(a.Key.StrideH), k_row: C.longlong(a.Key.Stride),
		v_batch: C.longlong(a.Value.StrideB), v_head: C.longlong(a.Value.StrideH), v_row: C.longlong(a.Value.Stride),
	}
	return q.launch(launch{
		kernel: attendKernel("attend_sm80.cu", 80, false, a.Query.Dim, a.Half, a.features()...),
		entry:  "attend_plain", grid: [3]int{items(&args.a), 1}, threads: 256,
		shared: plainShared(a.Query.Dim, rotations), args: unsafe.Pointer(&args),
	})
}

func (q *Queue) attendArgs(a Attention) C.AttendArgs {
	args := C.AttendArgs{
		out: C.ulonglong(a.Out.Data), lse: C.ulonglong(a.LSE), sinks: C.ulonglong(a.Sinks), counter: C.ulonglong(q.counter),
		out_batch: C.longlong(a.Out.StrideB), out_head: C.longlong(a.Out.StrideH), out_row: C.longlong(a.Out.Stride),
		lse_batch: C.longlong(a.LSEBatch), lse_head: C.longlong(a.LSEHead),
		batch: C.int(a.Query.Batch), q_heads: C.int(a.Query.Heads), kv_heads: C.int(a.Key.Heads),
		q_blocks: C.int(ceilDiv(a.Query.Rows, Tile)), q_len: C.int(a.Query.Rows), k_len: C.int(a.Key.Rows),
		q_offset: C.int(a.Offset), band: C.int(a.Band), window: C.int(a.Window),
		scale: C.float(a.Scale), softcap: C.float(a.Softcap),
	}
	if a.Mask != nil {
		args.row_ptr, args.cols = C.ulonglong(a.Mask.RowPtr), C.ulonglong(a.Mask.Cols)
	}
	return args
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
