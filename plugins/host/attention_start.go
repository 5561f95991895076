package host

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/lane"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// maxQuickCopy is how many bytes a start copies on its caller's thread, where
// nothing can interrupt it: a few milliseconds.
const maxQuickCopy = 32 << 20

var _ core.Starter = (*attender)(nil)

// started is an attention call on its way through the lane.
type started struct {
	attender *attender
	exchange *exchange
	ctx      context.Context
	cancel   context.CancelFunc
	unhook   func() bool // stops the waking when ctx is done

	over  bool // reply or err is there
	reply *lane.Reply
	err   error
}

// Start implements core.Starter, for a plugin that runs already, a lane that is
// free, and tensors that are in shared memory or small.
func (a *attender) Start(ctx context.Context, req *core.AttentionRequest) (core.StartedAttention, error) {
	if err := a.service.reload(); err != nil {
		return nil, a.service.blame(err)
	}
	session := a.service.running()
	if session == nil || a.service.host.copies(req) > maxQuickCopy || !session.Lane.Acquire() {
		return nil, nil
	}
	c, err := a.service.begin()
	if err != nil {
		session.Lane.Release()
		return nil, err
	}
	c.session, c.lane = session, true
	if a.service.verified.Load() != session { // it was exchanged a moment ago
		c.finish()
		return nil, nil
	}
	s := &started{attender: a}
	s.ctx, s.cancel = a.bounded(ctx)
	if s.exchange, err = a.exchange(s.ctx, c, req); err == nil {
		err = s.send(c)
	}
	if err == nil {
		s.unhook = context.AfterFunc(s.ctx, session.Lane.Wake)
		return s, nil
	}
	s.cancel()
	if errors.Is(err, lane.ErrTooLarge) || errors.Is(err, lane.ErrLost) {
		c.finish() // what was copied is copied again, and counted then
		return nil, nil
	}
	return nil, a.end(c, err)
}

// running is the process, if it runs and is verified.
func (s *service) running() *Session {
	session := s.verified.Load()
	if session == nil || session.Err() != nil || session.stopping.Load() || s.refusal.Load() != nil {
		return nil
	}
	return session
}

// copies counts the bytes of a request that lie outside of the pool.
func (h *Host) copies(req *core.AttentionRequest) int64 {
	var size int64
	for _, t := range []*tensor.Tensor{req.Query, req.Key, req.Value, req.Output} {
		if t.Device() != tensor.CPU {
			continue
		}
		if _, _, ok := h.pool.Find(uintptr(t.Pointer()), int(t.Span())); !ok {
			size += t.Span()
		}
	}
	return size
}

func (s *started) send(c *call) error {
	deadline, _ := s.ctx.Deadline()
	left := time.Until(deadline)
	if left <= 0 || s.ctx.Err() != nil {
		return c.session.outcome(s.ctx, pb.AttentionService_Attend_FullMethodName, grpcstatus.FromContextError(context.Cause(s.ctx)).Err())
	}
	err := c.session.Lane.Send(c.id, plugins.LaneAttend, left, func(to []byte) ([]byte, error) {
		return proto.MarshalOptions{}.MarshalAppend(to, s.exchange.request)
	})
	c.open = err == nil // a packet is sent whole or not at all
	return err
}

// Wait implements core.StartedAttention.
func (s *started) Wait(limit time.Duration) bool {
	if s.over {
		return true
	}
	if s.ctx.Err() == nil {
		s.reply, s.err = s.exchange.call.session.Lane.Wait(s.exchange.call.id, limit)
	}
	s.over = s.reply != nil || s.err != nil || s.ctx.Err() != nil
	return s.over
}

// Finish implements core.StartedAttention.
func (s *started) Finish() (*core.AttentionResponse, error) {
	defer s.cancel()
	for !s.Wait(time.Minute) {
	}
	s.unhook()
	response, err := s.result()
	if err := s.attender.end(s.exchange.call, err); err != nil {
		return nil, err
	}
	return response, nil
}

func (s *started) result() (*core.AttentionResponse, error) {
	c := s.exchange.call
	reply := &pb.AttendResponse{}
	err := s.answer(reply)
	if err = c.answered(c.session.outcome(s.ctx, pb.AttentionService_Attend_FullMethodName, err)); err != nil {
		return nil, err
	}
	return s.exchange.take(reply)
}

// answer reads the reply. Its errors are those that gRPC would give.
func (s *started) answer(reply *pb.AttendResponse) error {
	switch {
	case errors.Is(s.err, lane.ErrLost):
		return grpcstatus.Error(codes.Unavailable, s.err.Error())
	case s.err != nil:
		return badAnswer(s.err)
	case s.reply == nil:
		return grpcstatus.FromContextError(context.Cause(s.ctx)).Err()
	case s.reply.Failed:
		failure := &status.Status{}
		if err := proto.Unmarshal(s.reply.Body, failure); err != nil {
			return badAnswer(err)
		}
		return grpcstatus.FromProto(failure).Err()
	}
	if err := proto.Unmarshal(s.reply.Body, reply); err != nil {
		return badAnswer(err)
	}
	return nil
}
