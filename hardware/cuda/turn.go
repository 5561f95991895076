package cuda

/*
#include "src/rotate_args.h"
*/
import "C"

import (
	"fmt"
	"math"
	"strconv"

	"github.com/trivium-ml/trivium/hardware"
)

// Turn is one rotation for all rows: each pair of columns, neighbours or half
// the rotary width apart, by its angle in radians.
type Turn struct {
	Angles      []float64
	Interleaved bool
}

func (t Turn) validate(headDim int) error {
	pairs := len(t.Angles)
	if pairs == 0 || 2*pairs > headDim || pairs > C.kMostPairs || !t.Interleaved && pairs%2 != 0 {
		return fmt.Errorf("cuda: a turn of %d pairs for head_dim %d: want at most all of it, an even number unless interleaved", pairs, headDim)
	}
	return nil
}

// turnSteps are columns: what a matrix instruction of the kernel takes at once.
const turnSteps = 16

// TurnsWhileAttending says whether prefill on the device makes the turned
// queries as it goes, rather than a kernel of its own before it.
func (d *Device) TurnsWhileAttending(t Turn) bool {
	return d.Capability == 90 && (t.Interleaved || len(t.Angles)%turnSteps == 0)
}

// define is the variant of the kernel: how many steps the members of a pair are
// apart, 0 for neighbours.
func (t Turn) define() Feature {
	steps := len(t.Angles) / turnSteps
	if t.Interleaved {
		steps = 0
	}
	return Feature("TURN=" + strconv.Itoa(steps))
}

// table is the cosine and the sine of each pair, as the kernel takes them.
func (t Turn) table() [C.kMostPairs][2]C.float {
	var table [C.kMostPairs][2]C.float
	for i := range table {
		table[i] = [2]C.float{1, 0}
	}
	for i, angle := range t.Angles {
		sine, cosine := math.Sincos(angle)
		table[i] = [2]C.float{C.float(cosine), C.float(sine)}
	}
	return table
}

// turned puts the queries that a turn makes into the queue's memory, for the
// kernels that read them: rows of positions from `from` on. They are good until
// the next call with a turn.
func (q *Queue) turned(query Tensor, half bool, offset int, sequences []Sequence, from int, t Turn) (*Tensor, error) {
	if err := q.room(&q.second, query.Bytes()); err != nil {
		return nil, err
	}
	turned := query.DenseAt(q.second.at)
	return &turned, q.Rotate(Rotation{In: query, Out: turned, Half: half, Offset: offset, Sequences: sequences, From: from,
		Applied: make([]float64, len(t.Angles)), InvFreq: t.Angles, Interleaved: t.Interleaved, Rule: hardware.Rule{Offset: 1}})
}

// withRotated is the call with its second rotation as a tensor.
func (q *Queue) withRotated(a Attention) (Attention, error) {
	if a.Turn == nil {
		return a, nil
	}
	var err error
	a.Rotated, err = q.turned(a.Query, a.Half, a.Offset, a.Sequences, a.Band, *a.Turn)
	a.Turn = nil
	return a, err
}
