package sdk

import (
	"context"

	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

type catalog struct {
	pb.UnimplementedCatalogServiceServer
	*server
}

func (c catalog) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	response := &pb.DescribeResponse{}
	for _, info := range c.config.Describe() {
		if info.Kind != c.kind {
			continue
		}
		m, err := wire.EncodeInfo(info)
		if err != nil {
			return nil, wire.EncodeError(err)
		}
		response.Strategies = append(response.Strategies, m)
	}
	return response, nil
}

func (c catalog) Settle(ctx context.Context, req *pb.SettleRequest) (*pb.SettleResponse, error) {
	if err := c.calls.settle(ctx, req.GetCallId(), req.GetCancel()); err != nil {
		return nil, wire.EncodeError(err)
	}
	return &pb.SettleResponse{}, nil
}

func (c catalog) Devices(context.Context, *pb.DevicesRequest) (*pb.DevicesResponse, error) {
	response := &pb.DevicesResponse{}
	if c.config.Devices == nil {
		return response, nil
	}
	for _, d := range c.config.Devices.List() {
		response.Devices = append(response.Devices, wire.EncodeDevice(d))
	}
	return response, nil
}
