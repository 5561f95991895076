package sdk

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

type merge struct {
	pb.UnimplementedMergeServiceServer
	*server
}

func (g merge) Weights(ctx context.Context, m *pb.WeightsRequest) (*pb.WeightsResponse, error) {
	strategy, info, err := g.lookup(m.GetStrategy())
	if err != nil {
		return nil, err
	}
	weigher, ok := strategy.(core.Weigher)
	if !ok {
		return nil, core.Errorf(core.ErrUnsupported, "%s is not linear: it has no weights", info.ID())
	}
	req, err := wire.DecodeWeightsRequest(m)
	if err != nil {
		return nil, err
	}
	if req.Params, err = info.Validate(req.Params, 0); err != nil {
		return nil, err
	}
	weights, err := weigher.Weights(ctx, req)
	if err != nil {
		return nil, err
	}
	return &pb.WeightsResponse{Weights: weights}, nil
}

func (g merge) Merge(ctx context.Context, m *pb.MergeRequest) (*pb.MergeResponse, error) {
	strategy, info, err := g.lookup(m.GetStrategy())
	if err != nil {
		return nil, err
	}
	memory := newMemory(ctx, g.server)
	defer memory.release()
	req, err := wire.DecodeMerge(m, memory)
	if err != nil {
		return nil, err
	}
	if req.Params, err = info.Validate(req.Params, 0); err != nil {
		return nil, err
	}
	response, err := strategy.(core.MergeStrategy).Merge(ctx, req)
	if err != nil {
		return nil, err
	}
	return wire.EncodeMergeResponse(response), nil
}

func (g merge) Compare(ctx context.Context, m *pb.CompareRequest) (*pb.CompareResponse, error) {
	strategy, info, err := g.lookup(m.GetStrategy())
	if err != nil {
		return nil, err
	}
	comparer, ok := strategy.(core.Comparer)
	if !ok {
		return nil, core.Errorf(core.ErrUnsupported, "%s does not compare checkpoints", info.ID())
	}
	memory := newMemory(ctx, g.server)
	defer memory.release()
	req, err := wire.DecodeCompare(m, memory)
	if err != nil {
		return nil, err
	}
	response, err := comparer.Compare(ctx, req)
	if err != nil {
		return nil, err
	}
	return wire.EncodeCompareResponse(response), nil
}
