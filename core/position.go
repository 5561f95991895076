package core

import (
	"context"
	"math"
	"slices"
)

// PositionStrategy says where tokens think they are. It returns data, never a
// callback, so that every attention strategy can follow it on any device.
type PositionStrategy interface {
	Strategy
	// Plan works out the positions for one call.
	Plan(ctx context.Context, req *PositionRequest) (*PositionPlan, error)
}

// PositionRequest asks for a plan.
type PositionRequest struct {
	HeadDim int
	// InvFreq are the rotary frequencies, in radians per token, by which query
	// and key were rotated at their true positions; rotary_dim is twice its
	// length and may be smaller than HeadDim.
	InvFreq []float64
	// Length is the number of tokens of the longest sequence, cache included.
	Length int64
	// TrainLength is the length the model was trained for, 0 when unknown.
	TrainLength int64
	// Interleaved: the rotary pairs are (0,1), (2,3), ... rather than
	// (0, rotary_dim/2), (1, rotary_dim/2+1), ...
	Interleaved bool
	Params      Params
}

// PositionPlan is what an attention kernel needs to know of positions.
//
// Query and key arrive rotated by AppliedInvFreq at their true positions.
// Every pair (m, n) of a query and a key position lies in exactly one band;
// its score is that of the query rotated at Query.Position(m) and the key
// rotated at Key.Position(n), both by InvFreq, times AttentionScale squared.
type PositionPlan struct {
	Strategy       string    `json:"strategy"`
	InvFreq        []float64 `json:"inv_freq"`
	AppliedInvFreq []float64 `json:"applied_inv_freq"`
	// AttentionScale multiplies the cosines and sines, and so the score twice.
	AttentionScale float64 `json:"attention_scale"`
	Interleaved    bool    `json:"interleaved,omitempty"`
	Bands          []Band  `json:"bands"`
	// Twice is a distance whose pairs join the softmax a second time, at their
	// true positions, in calls of more than one query; 0: none. It is there to
	// compare with code that does so.
	Twice int64 `json:"twice,omitempty"`
}

// Band is a region of relative distance and the positions that hold in it.
// The distance of a pair is floor(m/Chunk) - floor(n/Chunk); the band holds
// those with Low <= distance < High.
type Band struct {
	Chunk int64 `json:"chunk"` // 1: distance in tokens
	Low   int64 `json:"low"`   // Unbounded below: math.MinInt64
	High  int64 `json:"high"`  // unbounded above: math.MaxInt64
	Query Rule  `json:"query"`
	Key   Rule  `json:"key"`
}

// Rule maps a true position to the one that is used instead:
// min(Scale*floor((i mod Modulo)/Group) + Offset, Limit).
type Rule struct {
	Modulo int64   `json:"modulo,omitempty"` // 0: none
	Group  int64   `json:"group,omitempty"`  // 0 or 1: none
	Scale  float64 `json:"scale"`            // 0: the constant Offset
	Offset float64 `json:"offset"`
	Limit  float64 `json:"limit,omitempty"` // 0: none
}

// Identity leaves positions as they are.
func Identity() Rule { return Rule{Scale: 1} }

// Shift moves every position by offset tokens.
func Shift(offset float64) Rule { return Rule{Scale: 1, Offset: offset} }

// Position applies the rule to true position i.
func (r Rule) Position(i int64) float64 {
	if r.Modulo > 0 {
		i %= r.Modulo
	}
	if r.Group > 1 {
		i = floorDiv(i, r.Group)
	}
	p := r.Scale*float64(i) + r.Offset
	if r.Limit > 0 {
		p = min(p, r.Limit)
	}
	return p
}

// IsIdentity says whether the rule leaves every position as it is.
func (r Rule) IsIdentity() bool {
	return r.Modulo == 0 && r.Group <= 1 && r.Scale == 1 && r.Offset == 0 && r.Limit == 0
}

// Contains says whether the pair of query position m and key position n lies
// in the band.
func (b Band) Contains(m, n int64) bool {
	chunk := max(b.Chunk, 1)
	d := floorDiv(m, chunk) - floorDiv(n, chunk)
	return b.Low <= d && (d < b.High || b.High == math.MaxInt64)
}

// Band is the index of the band of a pair, -1 when there is none, which
// Validate rules out.
func (p *PositionPlan) Band(m, n int64) int {
	for i := range p.Bands {
		if p.Bands[i].Contains(m, n) {
			return i
		}
	}
	return -1
}

// Relative is the effective relative position of query m and key n.
func (p *PositionPlan) Relative(m, n int64) float64 {
	b := p.Bands[p.Band(m, n)]
	return b.Query.Position(m) - b.Key.Position(n)
}

// IsPlain says whether the plan changes nothing about scores of rotated
// queries and keys.
func (p *PositionPlan) IsPlain() bool {
	if p == nil {
		return true
	}
	if p.AttentionScale != 1 || p.Twice != 0 || len(p.Bands) != 1 || len(p.InvFreq) != len(p.AppliedInvFreq) {
		return false
	}
	for i := range p.InvFreq {
		if p.InvFreq[i] != p.AppliedInvFreq[i] {
			return false
		}
	}
	return p.Bands[0].Query.IsIdentity() && p.Bands[0].Key.IsIdentity()
}

// Validate checks a plan that came from a plugin: finite numbers, and bands
// of token distance that cover every distance exactly once, or bands of one
// chunk size that do.
func (p *PositionPlan) Validate(headDim int) error {
	if len(p.InvFreq) != len(p.AppliedInvFreq) || 2*len(p.InvFreq) > headDim {
		return Invalid("", "position plan: %d frequencies applied, %d wanted, for head_dim %d: want equal numbers, at most head_dim/2",
			len(p.AppliedInvFreq), len(p.InvFreq), headDim)
	}
	for _, list := range [][]float64{p.InvFreq, p.AppliedInvFreq, {p.AttentionScale}} {
		for _, f := range list {
			if math.IsNaN(f) || math.IsInf(f, 0) {
				return Invalid("", "position plan: %g among its frequencies: want finite numbers", f)
			}
		}
	}
	if p.Twice < 0 || p.Twice > 0 && !slices.Equal(p.InvFreq, p.AppliedInvFreq) {
		return Invalid("", "position plan: pairs at distance %d count twice: want a distance of at least 0, and the model's own frequencies", p.Twice)
	}
	return p.validateBands()
}

func (p *PositionPlan) validateBands() error {
	next := int64(math.MinInt64)
	for i, b := range p.Bands {
		if b.Chunk != p.Bands[0].Chunk || b.Chunk < 1 {
			return Invalid("", "position plan: band %d has chunk %d: want one chunk size of at least 1 for all bands", i, b.Chunk)
		}
		if b.Low != next || b.High <= b.Low {
			return Invalid("", "position plan: band %d covers distances [%d, %d): want bands in order that cover each distance once, next %d", i, b.Low, b.High, next)
		}
		next = b.High
	}
	if next != math.MaxInt64 {
		return Invalid("", "position plan: distances from %d on lie in no band", next)
	}
	return nil
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}
