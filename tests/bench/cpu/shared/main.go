// Command shared is the kernels as a C library, for benchmarks that run in one
// process with a peer: go build -buildmode=c-shared.
package main

import "C"

import (
	"context"
	"math"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cpu"
)

func main() {}

// The session of Open, the only one at a time.
var open struct {
	backend hardware.Backend
	session hardware.Session
	problem hardware.Problem
}

func heads(data unsafe.Pointer, count, n, dim int, d hardware.Dtype) []hardware.Matrix {
	var list []hardware.Matrix
	for h := range count {
		at := unsafe.Add(data, h*n*dim*d.Size())
		list = append(list, hardware.Matrix{Data: at, Dtype: d, Rows: n, Cols: dim, Stride: dim})
	}
	return list
}

// OpenProblem describes one causal sequence of contiguous [heads, n, dim]
// tensors with rows queries at the end, to be prepared; 0, or -1 for an
// instruction set that is not there. precision is a hardware.Precision.
//
//export OpenProblem
func OpenProblem(isa *C.char, q, k, v, o unsafe.Pointer, qHeads, kvHeads, rows, n, dim, dtype, threads, precision C.int) C.int {
	b, err := cpu.Open(C.GoString(isa))
	if err != nil {
		return -1
	}
	d := hardware.Dtype(dtype)
	open.backend = b
	open.problem = hardware.Problem{
		Sequences: []hardware.Sequence{{
			Query: heads(q, int(qHeads), int(rows), int(dim), d), Output: heads(o, int(qHeads), int(rows), int(dim), d),
			Key: heads(k, int(kvHeads), int(n), int(dim), d), Value: heads(v, int(kvHeads), int(n), int(dim), d),
			Offset: int(n - rows),
		}},
		Scale: 1 / math.Sqrt(float64(dim)), Causal: true, Threads: int(threads), Precision: hardware.Precision(precision),
	}
	return 0
}

// Prepare packs, and Close gives back.
//
//export Prepare
func Prepare() C.int {
	s, err := open.backend.Prepare(context.Background(), &open.problem)
	open.session = s
	return result(err)
}

//export Close
func Close() { open.session.Close() }

// Attend takes for each head rowPtr [blocks+1] into columns; NULL: dense.
//
//export Attend
func Attend(size C.int, rowPtr *C.longlong, columns *C.int) C.int {
	if rowPtr == nil {
		return result(open.session.Attend(context.Background(), nil))
	}
	q := &open.problem.Sequences[0]
	blocks := (q.Query[0].Rows + int(size) - 1) / int(size)
	pointers := unsafe.Slice((*int64)(unsafe.Pointer(rowPtr)), len(q.Query)*(blocks+1))
	var masks []hardware.Blocks
	for h := range q.Query {
		p := pointers[h*(blocks+1) : (h+1)*(blocks+1)]
		masks = append(masks, hardware.Blocks{Size: int(size), RowPtr: p, Columns: unsafe.Slice((*int32)(unsafe.Pointer(columns)), p[blocks])})
	}
	return result(open.session.Attend(context.Background(), masks))
}

//export Representative
func Representative(rows C.int) C.int {
	_, err := open.session.Representative(context.Background(), int(rows))
	return result(err)
}

// RowMass takes every step-th row.
//
//export RowMass
func RowMass(step, size C.int) C.int {
	var sets []hardware.RowSet
	for h, m := range open.problem.Sequences[0].Query {
		set := hardware.RowSet{Head: h}
		for r := 0; r < m.Rows; r += int(step) {
			set.Rows = append(set.Rows, int32(r))
		}
		sets = append(sets, set)
	}
	_, err := open.session.RowMass(context.Background(), sets, int(size))
	return result(err)
}

//export Pool
func Pool(query, size C.int) C.int {
	_, err := open.session.Pool(context.Background(), query != 0, int(size), 1)
	return result(err)
}

//export SquareMass
func SquareMass(stride, size C.int) C.int {
	_, err := open.session.SquareMass(context.Background(), int(stride), int(size), open.problem.Scale/float64(stride))
	return result(err)
}

//export MeanScores
func MeanScores(size C.int) C.int {
	_, err := open.session.MeanScores(context.Background(), int(size))
	return result(err)
}

func result(err error) C.int {
	if err != nil {
		return -1
	}
	return 0
}
