// Package position has the schemes that say where tokens think they are, one
// file each. A scheme is a function from a request to a plan: frequencies, a
// scale and bands of relative distance. Every frequency here derives from the
// model's own, by which queries and keys arrive rotated, so partial rotary
// models need nothing special.
package position

import (
	"context"
	"math"
	"slices"

	"github.com/trivium-ml/trivium/core"
)

// scheme is a strategy made of one function.
type scheme struct {
	info core.Info
	plan func(req *core.PositionRequest) (*core.PositionPlan, error)
}

func (s scheme) Info() core.Info { return s.info }

func (s scheme) Plan(_ context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	params, err := s.info.Validate(req.Params, 0)
	if err != nil {
		return nil, err
	}
	complete := *req
	complete.Params = params
	plan, err := s.plan(&complete)
	if err != nil {
		return nil, err
	}
	plan.Strategy = s.info.ID()
	return plan, nil
}

func newScheme(info core.Info, plan func(req *core.PositionRequest) (*core.PositionPlan, error)) core.PositionStrategy {
	info.Kind = core.Position
	info.License, info.Version = "Apache-2.0", "0.1.0"
	info.Capabilities.Deterministic = true
	return scheme{info: info, plan: plan}
}

// plain is the plan that changes nothing.
func plain(req *core.PositionRequest) *core.PositionPlan {
	return &core.PositionPlan{
		InvFreq:        slices.Clone(req.InvFreq),
		AppliedInvFreq: slices.Clone(req.InvFreq),
		AttentionScale: 1,
		Interleaved:    req.Interleaved,
		Bands:          []core.Band{everywhere(core.Identity(), core.Identity())},
	}
}

// rescaled is the plain plan at other frequencies: frequency i times factor(i).
func rescaled(req *core.PositionRequest, factor func(i int) float64) *core.PositionPlan {
	plan := plain(req)
	for i := range plan.InvFreq {
		plan.InvFreq[i] *= factor(i)
	}
	return plan
}

func everywhere(query, key core.Rule) core.Band {
	return core.Band{Chunk: 1, Low: math.MinInt64, High: math.MaxInt64, Query: query, Key: key}
}

// nearAndFar splits token distances at boundary: nearer pairs keep their true
// positions, the others follow the rules.
func nearAndFar(boundary int64, query, key core.Rule) []core.Band {
	near := everywhere(core.Identity(), core.Identity())
	near.High = boundary
	far := everywhere(query, key)
	far.Low = boundary
	return []core.Band{near, far}
}

// trainLengthParameter lets the caller say what the model was trained for.
func trainLengthParameter() core.Parameter {
	return core.Parameter{Name: "train_length", Type: core.Int, Unit: "tokens", Min: core.Bound(1), Doc: "length the model was trained for; unset: as the model says"}
}

func trainLength(req *core.PositionRequest, id string) (int64, error) {
	if req.Params.IsSet("train_length") {
		return int64(req.Params.Int("train_length")), nil
	}
	if req.TrainLength > 0 {
		return req.TrainLength, nil
	}
	return 0, core.Invalid("position."+id, "the length the model was trained for is not known").WithHint("pass train_length=")
}

func factorParameter(doc string) core.Parameter {
	return core.Parameter{Name: "factor", Type: core.Float, Default: 2.0, Min: core.Bound(1), Doc: doc}
}
