package sdk

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/lane"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

var attendInfo = &grpc.UnaryServerInfo{FullMethod: pb.AttentionService_Attend_FullMethodName}

// serveLane serves the lane if the host has one and the strategies attend.
func (s *server) serveLane() error {
	if os.Getenv(plugins.EnvLane) != "1" {
		return nil
	}
	end, err := inherited(plugins.LaneFD, unix.S_IFSOCK, "lane")
	if err != nil || s.kind != core.Attention {
		return err
	}
	greeted := make(chan error, 1)
	go func() {
		if err := lane.Serve(end, s.answer, func() { greeted <- nil }); err != nil {
			s.log.Error("the lane ended", "error", err)
			greeted <- err
		}
	}()
	return <-greeted
}

// answer runs one call of the lane, as gRPC would.
func (s *server) answer(call lane.Call, reply []byte) ([]byte, bool) {
	response, err := s.attendByLane(call)
	if err == nil {
		if body, err := (proto.MarshalOptions{}).MarshalAppend(reply, response); err == nil {
			return body, false
		}
		err = wire.EncodeError(core.Errorf(core.ErrInternal, "the reply cannot be encoded"))
	}
	body, err := proto.MarshalOptions{}.MarshalAppend(reply, status.Convert(err).Proto())
	if err != nil { // a status always encodes
		return reply, true
	}
	return body, true
}

func (s *server) attendByLane(call lane.Call) (proto.Message, error) {
	request := &pb.AttendRequest{}
	if call.Method != plugins.LaneAttend {
		return nil, wire.EncodeError(core.Errorf(core.ErrUnsupported, "lane: method %d is unknown", call.Method))
	}
	if err := proto.Unmarshal(call.Body, request); err != nil || request.GetCallId() != call.ID {
		return nil, wire.EncodeError(core.Invalid("", "lane: the request of call %d does not decode", call.ID))
	}
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if call.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, call.Timeout)
	}
	defer cancel()
	response, err := s.guard(ctx, request, attendInfo, func(ctx context.Context, req any) (any, error) {
		return attention{server: s}.Attend(ctx, req.(*pb.AttendRequest))
	})
	if err != nil {
		return nil, err
	}
	return response.(proto.Message), nil
}
