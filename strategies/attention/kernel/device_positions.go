package kernel

import (
	"math"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// rotations are what a position plan makes of a part.
type rotations struct {
	scale  float64      // of the scores
	far    *cuda.Tensor // queries for distances from border on
	turn   *cuda.Turn   // instead of far, which it makes; without either one rotation is for all
	border int
}

// Scale is the factor of the part's scores.
func (c *DeviceCall) Scale(p *Part) float32 { return float32(c.Request.Scale * p.positions.scale) }

// Far are the part's queries for distances from border on, or the turn that
// makes them; without either one rotation does for all.
func (p *Part) Far() (queries *cuda.Tensor, turn *cuda.Turn, border int) {
	return p.positions.far, p.positions.turn, p.positions.border
}

// position turns the queries and keys of a part as the plan says. The kernels
// know one rotation of keys and, by distance, two of queries.
func (c *DeviceCall) position(p *Part) error {
	p.positions.scale = 1
	plan := c.Request.Position
	if plan.IsPlain() {
		return nil
	}
	p.positions.scale = plan.AttentionScale * plan.AttentionScale
	near, far, border, err := c.bands(p, plan)
	if err != nil {
		return err
	}
	if turn, one := oneTurn(plan, near, far); one && c.lane.Device.TurnsWhileAttending(turn) {
		p.positions.turn, p.positions.border = &turn, border
	} else if far != nil {
		turned, err := c.turn(p.Query, p.Offset, p.Sequences, border, plan, far.Query)
		if err != nil {
			return err
		}
		p.positions.far, p.positions.border = &turned, border
	}
	if p.Query, err = c.turn(p.Query, p.Offset, p.Sequences, 0, plan, near.Query); err != nil {
		return err
	}
	p.Key, err = c.turn(p.Key, 0, keySequences(p.Sequences), 0, plan, near.Key)
	return err
}

// oneTurn is what makes far queries of near ones, if it is the same for all of
// them and the near ones arrived as they are.
func oneTurn(plan *core.PositionPlan, near, far *core.Band) (cuda.Turn, bool) {
	if far == nil || !near.Query.IsIdentity() || !slices.Equal(plan.InvFreq, plan.AppliedInvFreq) || far.Query != core.Shift(far.Query.Offset) {
		return cuda.Turn{}, false
	}
	turn := cuda.Turn{Interleaved: plan.Interleaved, Angles: make([]float64, len(plan.InvFreq))}
	for i, frequency := range plan.InvFreq {
		turn.Angles[i] = frequency * far.Query.Offset
	}
	return turn, true
}

// bands are the one or two bands that pairs of the part lie in, and the
// distance that divides them.
func (c *DeviceCall) bands(p *Part, plan *core.PositionPlan) (near, far *core.Band, border int, err error) {
	// The causal distances of the part, of which all others are a superset.
	low, high := int64(p.Offset)-int64(p.Key.Rows)+1, int64(p.Offset+p.Query.Rows)
	for _, s := range p.Sequences {
		low, high = min(low, 1-int64(s.Keys)), max(high, int64(s.Offset+s.Queries))
	}
	if c.Request.Causal {
		low = 0
	}
	var met []*core.Band
	for i := range plan.Bands {
		b := &plan.Bands[i]
		if b.Chunk != 1 && len(plan.Bands) > 1 {
			return nil, nil, 0, c.Unsupported("positions %q, by chunks of %d", plan.Strategy, b.Chunk)
		}
		if b.Low < high && (b.High > low || b.High == math.MaxInt64) {
			met = append(met, b)
		}
	}
	switch {
	case len(met) == 1:
		return met[0], nil, 0, nil
	case len(met) == 2 && met[0].Key == met[1].Key && c.Request.Causal:
		return met[0], met[1], int(met[1].Low), nil
	}
	return nil, nil, 0, c.Unsupported("positions %q, whose %d bands turn keys too,", plan.Strategy, len(met))
}

// keySequences are the sequences of keys as if they were queries.
func keySequences(all []cuda.Sequence) []cuda.Sequence {
	if all == nil {
		return nil
	}
	keys := make([]cuda.Sequence, len(all))
	for i, s := range all {
		keys[i] = cuda.Sequence{Batch: s.Batch, QueryRow: s.KeyRow, Queries: s.Keys, KeyRow: s.KeyRow, Keys: s.Keys}
	}
	return keys
}

// turn rotates rows, unless nothing changes. Rows at positions below from are
// not needed.
func (c *DeviceCall) turn(t cuda.Tensor, offset int, sequences []cuda.Sequence, from int, plan *core.PositionPlan, rule core.Rule) (cuda.Tensor, error) {
	if rule.IsIdentity() && slices.Equal(plan.InvFreq, plan.AppliedInvFreq) {
		return t, nil
	}
	at, err := c.Work.Scratch(t.Bytes())
	if err != nil {
		return cuda.Tensor{}, err
	}
	turned := t.DenseAt(at)
	return turned, c.Work.Rotate(cuda.Rotation{In: t, Out: turned, Half: c.Half, Offset: offset, Sequences: sequences, From: from,
		Applied: plan.AppliedInvFreq, InvFreq: plan.InvFreq, Interleaved: plan.Interleaved,
		Rule: hardware.Rule(rule)})
}
