package sdk

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

type position struct {
	pb.UnimplementedPositionServiceServer
	*server
}

func (p position) Plan(ctx context.Context, m *pb.PlanRequest) (*pb.PlanResponse, error) {
	strategy, info, err := p.lookup(m.GetStrategy())
	if err != nil {
		return nil, err
	}
	req, err := wire.DecodePositionRequest(m)
	if err != nil {
		return nil, err
	}
	if req.Params, err = info.Validate(req.Params, 0); err != nil {
		return nil, err
	}
	plan, err := strategy.(core.PositionStrategy).Plan(ctx, req)
	if err != nil {
		return nil, err
	}
	return &pb.PlanResponse{Plan: wire.EncodePlan(plan)}, nil
}
