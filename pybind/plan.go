package pybind

import (
	"context"

	"github.com/trivium-ml/trivium/core"
)

// plans are the position plans that Python holds, by number.
var plans = newHandles[*core.PositionPlan]("position plan")

type planRequest struct {
	Engine      int64       `json:"engine"`
	Strategy    string      `json:"strategy"`
	HeadDim     int         `json:"head_dim"`
	InvFreq     []float64   `json:"inv_freq"`
	Length      int64       `json:"length"`
	TrainLength int64       `json:"train_length"`
	Interleaved bool        `json:"interleaved"`
	Params      core.Params `json:"params"`
}

type planResult struct {
	ID   int64              `json:"id"`
	Plan *core.PositionPlan `json:"plan"`
}

func plan(ctx context.Context, request string) (string, error) {
	var in planRequest
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, err := engines.find(in.Engine)
	if err != nil {
		return "", err
	}
	p, err := e.Plan(ctx, in.Strategy, &core.PositionRequest{HeadDim: in.HeadDim, InvFreq: in.InvFreq, Length: in.Length,
		TrainLength: in.TrainLength, Interleaved: in.Interleaved, Params: in.Params})
	if err != nil {
		return "", err
	}
	return marshal(planResult{plans.add(p), p})
}

// ForgetPlan drops a position plan.
func ForgetPlan(plan int64) (id int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	_, err = plans.take(plan)
	return plan, err
}
