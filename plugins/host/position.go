package host

import (
	"context"
	"errors"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// position is a strategy of a plugin that plans positions.
type position struct{ strategy }

var _ core.PositionStrategy = (*position)(nil)

// Plan implements core.PositionStrategy.
func (p *position) Plan(ctx context.Context, req *core.PositionRequest) (*core.PositionPlan, error) {
	var plan *core.PositionPlan
	err := p.call(ctx, func(ctx context.Context, c *call) error {
		m, err := wire.EncodePositionRequest(req)
		if err != nil {
			return err
		}
		m.CallId, m.Strategy = c.id, p.info.Name
		var reply *pb.PlanResponse
		if err := c.invoke(func() (err error) {
			reply, err = pb.NewPositionServiceClient(c.session.Conn).Plan(ctx, m, callOptions...)
			return err
		}); err != nil {
			return err
		}
		if reply.GetPlan() == nil {
			return badAnswer(errors.New("no plan"))
		}
		if plan, err = wire.DecodePlan(reply.GetPlan()); err != nil {
			return badAnswer(err)
		}
		return badAnswer(plan.Validate(req.HeadDim))
	})
	if err != nil {
		return nil, err
	}
	return plan, nil
}
