package cuda

/*
#include "src/decode_args.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Work on few queries: a block takes decodeRows of them (query heads of one key
// head times their queries), up to decodeMost in all; more are prefill.
const (
	decodeRows = 16
	decodeMost = 64
	probeRows  = 64 // of one query head; half of it with two rotations
	stepBytes  = 4096
	stages     = 3
	mostGroups = 1<<16 - 1 // the second axis of a grid
)

// decodes says whether a call is split over its keys.
func (a Attention) decodes() bool {
	return a.Mask == nil && a.Query.Heads/a.Key.Heads*a.longest() <= decodeMost && a.sequences()*a.Key.Heads <= mostGroups
}

// splitWork is how the decode kernel is started.
type splitWork struct {
	tensors   int // of each step: K, or K and V
	rows      int // of a tile
	rowTiles  int
	groups    int
	splits    int
	warps     int
	sumsBytes int // of the rows of a tile
}

// planSplit spreads groups x rowTiles x splits blocks over the processors.
func planSplit(w splitWork, keys, processors, shared int) splitWork {
	w.warps = 8
	if w.shared()+w.static() > shared {
		w.warps = 4
	}
	// The fewest waves of work, a block's start and end counted as two tiles; more than four waves gain nothing.
	blocks, best := ceilDiv(keys, Tile), -1
	for splits := 1; splits <= blocks && (splits == 1 || splits*w.groups*w.rowTiles <= 4*processors); splits++ {
		cost := ceilDiv(splits*w.groups*w.rowTiles, processors) * (ceilDiv(blocks, splits) + 2)
		if best < 0 || cost < best {
			w.splits, best = splits, cost
		}
	}
	return w
}

// shared is the dynamic shared memory: a ring for each warp, later their sums.
func (w splitWork) shared() int { return w.warps * stages * w.tensors * stepBytes }

// static is what the kernel takes besides: a pair for each row of each warp.
func (w splitWork) static() int { return 8*w.rows*8 + 128 }

func (w splitWork) parts() int { return w.groups * w.rowTiles * w.splits }

// decode starts the split kernel.
func (q *Queue) decode(a Attention) error {
	shared, err := q.attendArgs(a, 1)
	if err != nil {
		return err
	}
	dim := compiledDim(a.Query.Dim)
	w := planSplit(splitWork{tensors: 2, rows: decodeRows, rowTiles: ceilDiv(a.Query.Heads/a.Key.Heads*a.longest(), decodeRows),
		groups: a.sequences() * a.Key.Heads, sumsBytes: decodeRows * dim * 4}, a.Key.Rows, q.device.Processors, q.device.Shared)
	return q.split(a, w, C.DecodeArgs{x: plainArgs(a, shared)})
}

// split adds the queue's memory and starts the kernel.
func (q *Queue) split(a Attention, w splitWork, args C.DecodeArgs, features ...Feature) error {
	sums := w.parts() * w.sumsBytes
	if err := q.room(&q.parts, sums+w.parts()*w.rows*8); err != nil {
		return err
	}
	if err := q.zeroRoom(&q.tickets, w.groups*w.rowTiles*4); err != nil {
		return err
	}
	args.partial, args.partial_rows, args.done = C.ulonglong(q.parts.at), C.ulonglong(q.parts.at+Address(sums)), C.ulonglong(q.tickets.at)
	args.splits, args.row_tiles = C.int(w.splits), C.int(w.rowTiles)
	return q.launch(launch{
		kernel: attendKernel("decode.cu", 80, false, a.Query.Dim, a.Half, append(features, a.features()...)...),
		entry:  "decode", grid: [3]int{w.rowTiles * w.splits, w.groups}, threads: 32 * w.warps, shared: w.shared(), args: unsafe.Pointer(&args),
	})
}

// Probes are query rows of a call whose coverage is wanted: int32 row numbers
// [sequence, query head, Count], counted from the sequence's first query,
// negative where there is none; rising rows share their reading.
type Probes struct {
	Rows  Address
	Count int
	Dense Address // written: float32 LSE of each probe over every key it may see, sinks not included
	Kept  Address // written: float32 share of that mass that the call's LSE holds; 1 where a row sees nothing
}

// Certify measures what a call kept, on the probes, after Attend wrote its LSE.
func (q *Queue) Certify(a Attention, p Probes) error {
	if err := a.validate(); err != nil {
		return err
	}
	a, err := q.withRotated(a)
	if err != nil {
		return err
	}
	if groups := a.sequences() * a.Query.Heads; groups > mostGroups {
		return fmt.Errorf("cuda: %d sequences of %d heads: coverage is measured for at most %d of them in a call", a.sequences(), a.Query.Heads, mostGroups)
	} else if groups == 0 || p.Count == 0 {
		return nil
	}
	shared, err := q.attendArgs(a, 1)
	if err != nil {
		return err
	}
	_, rotations := a.rotated()
	rows := probeRows / rotations
	w := planSplit(splitWork{tensors: 1, rows: rows, rowTiles: ceilDiv(p.Count, rows), groups: a.sequences() * a.Query.Heads},
		a.Key.Rows, q.device.Processors, q.device.Shared)
	args := C.DecodeArgs{x: plainArgs(a, shared), probe_rows: C.ulonglong(p.Rows), dense: C.ulonglong(p.Dense), kept: C.ulonglong(p.Kept), probes: C.int(p.Count)}
	return q.split(a, w, args, Probing)
}
