package cuda

/*
#include "src/rotate_args.h"
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// Rotation moves queries to the positions of a band: rows of In at position p
// arrive rotated by Applied p and leave in Out rotated by InvFreq Rule(p).
type Rotation struct {
	In, Out          Tensor
	Half             bool       // fp16 instead of bf16
	Offset           int        // position of row 0; without Sequences
	Sequences        []Sequence // as in Attention
	Applied, InvFreq []float64  // radians per token; half the rotary width of them
	Interleaved      bool
	Rule             hardware.Rule
	From             int // rows at positions below are not needed: they are not written
}

func (r Rotation) validate() error {
	if err := r.In.validate("q"); err != nil {
		return err
	}
	if err := r.Out.validate("the rotated q"); err != nil {
		return err
	}
	in, out, pairs := r.In, r.Out, len(r.InvFreq)
	if in.Batch != out.Batch || in.Heads != out.Heads || in.Rows != out.Rows || in.Dim != out.Dim {
		return fmt.Errorf("cuda: the rotated q is %d x %d x %d x %d: want the shape of q", out.Batch, out.Heads, out.Rows, out.Dim)
	}
	if pairs == 0 || pairs != len(r.Applied) || 2*pairs > in.Dim || pairs > C.kMostPairs || !r.Interleaved && pairs%2 != 0 {
		return fmt.Errorf("cuda: %d and %d frequencies for head_dim %d: want as many, for at most all of it, an even number unless interleaved", pairs, len(r.Applied), in.Dim)
	}
	if len(r.Sequences) > mostGroups || in.Batch > mostGroups {
		return fmt.Errorf("cuda: %d sequences: a call rotates at most %d", max(len(r.Sequences), in.Batch), mostGroups)
	}
	return Attention{Query: in, Key: in, Sequences: r.Sequences}.validateQueries()
}

// Rotate starts the rotation on the queue; it does not wait.
func (q *Queue) Rotate(r Rotation) error {
	if err := r.validate(); err != nil {
		return err
	}
	a := Attention{Query: r.In, Key: r.In, Sequences: r.Sequences}
	if a.sequences() == 0 || a.longest() == 0 {
		return nil
	}
	shared, err := q.attendArgs(a, 1)
	if err != nil {
		return err
	}
	args := C.RotateArgs{
		in: C.ulonglong(r.In.Data), out: C.ulonglong(r.Out.Data), sequences: shared.sequences,
		in_batch: C.longlong(r.In.StrideB), in_head: C.longlong(r.In.StrideH), in_row: C.longlong(r.In.Stride),
		out_batch: C.longlong(r.Out.StrideB), out_head: C.longlong(r.Out.StrideH), out_row: C.longlong(r.Out.Stride),
		modulo: C.longlong(r.Rule.Modulo), group: C.longlong(r.Rule.Group),
		scale: C.double(r.Rule.Scale), offset: C.double(r.Rule.Offset), limit: C.double(r.Rule.Limit),
		batch: C.int(r.In.Batch), heads: C.int(r.In.Heads), rows: C.int(r.In.Rows), q_offset: C.int(r.Offset),
		head_dim: C.int(r.In.Dim), pairs: C.int(len(r.InvFreq)), from: C.int(r.From),
	}
	if r.Interleaved {
		args.interleaved = 1
	}
	for i := range r.InvFreq {
		args.applied[i], args.wanted[i] = C.double(r.Applied[i]), C.double(r.InvFreq[i])
	}
	return q.launch(launch{kernel: indexKernel("rotate.cu", element(r.Half)), entry: "rotate",
		grid: [3]int{ceilDiv(a.longest(), 4), a.sequences()}, threads: 256, args: unsafe.Pointer(&args)})
}
