package host

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// attention is a strategy of a plugin that selects.
type attention struct{ strategy }

// attender is one that also attends.
type attender struct{ attention }

var (
	_ core.AttentionStrategy = (*attention)(nil)
	_ core.Attender          = (*attender)(nil)
)

// Select implements core.AttentionStrategy. The request must be valid.
func (a *attention) Select(ctx context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	selection := &core.Selection{}
	err := a.call(ctx, func(ctx context.Context, c *call) error {
		m, err := c.request(ctx, req)
		if err != nil {
			return err
		}
		room, segment, err := c.maskRoom(ctx, req)
		if err != nil {
			return err
		}
		var reply *pb.SelectResponse
		if err := c.invoke(func() (err error) {
			remote := &pb.SelectRequest{CallId: c.id, Strategy: a.info.Name, Attention: m, MaskMemory: room}
			reply, err = pb.NewAttentionServiceClient(c.session.Conn).Select(ctx, remote, callOptions...)
			return err
		}); err != nil {
			return err
		}
		selection.Reason = reply.GetSelection().GetReason()
		if selection.Heads, err = wire.DecodeHeads(reply.GetSelection().GetHeads()); err != nil {
			return badAnswer(err)
		}
		selection.Mask, err = takeMask(reply.GetSelection().GetMask(), segment, req)
		return badAnswer(err)
	})
	if err != nil {
		return nil, err
	}
	return selection, nil
}

// Attend implements core.Attender. The request must be valid, its outputs too.
func (a *attender) Attend(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	if s, err := a.Start(ctx, req); err != nil {
		return nil, err
	} else if s != nil {
		return s.Finish()
	}
	var response *core.AttentionResponse
	err := a.call(ctx, func(ctx context.Context, c *call) error {
		x, err := a.exchange(ctx, c, req)
		if err != nil {
			return err
		}
		var reply *pb.AttendResponse
		if err := c.invoke(func() (err error) {
			reply, err = pb.NewAttentionServiceClient(c.session.Conn).Attend(ctx, x.request, callOptions...)
			return err
		}); err != nil {
			return err
		}
		response, err = x.take(reply)
		return err
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// exchange is one Attend as it travels, by gRPC or by the lane.
type exchange struct {
	call    *call
	req     *core.AttentionRequest
	request *pb.AttendRequest
	mask    *shm.Segment // room for the plugin's mask; nil: none wanted
	began   time.Time
}

// exchange puts the tensors of a request in place.
func (a *attender) exchange(ctx context.Context, c *call, req *core.AttentionRequest) (*exchange, error) {
	x := &exchange{call: c, req: req, began: time.Now()}
	m, err := c.request(ctx, req)
	if err != nil {
		return nil, err
	}
	if m.Output, err = c.output(ctx, "output", req.Output); err != nil {
		return nil, err
	}
	if req.LSE != nil {
		if m.Lse, err = c.output(ctx, "lse", req.LSE); err != nil {
			return nil, err
		}
	}
	x.request = &pb.AttendRequest{CallId: c.id, Strategy: a.info.Name, Attention: m}
	if req.WantMask {
		x.request.MaskMemory, x.mask, err = c.maskRoom(ctx, req)
	}
	return x, err
}

// take checks the plugin's answer and brings its results to the caller.
func (x *exchange) take(reply *pb.AttendResponse) (*core.AttentionResponse, error) {
	response := &core.AttentionResponse{}
	var err error
	if response.Report, err = wire.DecodeReport(reply.GetReport()); err != nil {
		return nil, badAnswer(err)
	}
	if response.Mask, err = takeMask(reply.GetMask(), x.mask, x.req); err != nil {
		return nil, badAnswer(err)
	}
	x.call.copyBack()
	if err := x.checkNumbers(); err != nil {
		return nil, badAnswer(err)
	}
	noteUnproven(&response.Report, x.req)
	x.call.report(&response.Report, x.began)
	return response, nil
}

// request puts the inputs of a request in place and refers to them.
func (c *call) request(ctx context.Context, req *core.AttentionRequest) (*pb.AttentionRequest, error) {
	m, err := wire.EncodeAttention(req)
	if err != nil {
		return nil, err
	}
	if m.Query, err = c.input(ctx, "query", req.Query); err != nil {
		return nil, err
	}
	if m.Key, err = c.input(ctx, "key", req.Key); err != nil {
		return nil, err
	}
	if m.Value, err = c.input(ctx, "value", req.Value); err != nil {
		return nil, err
	}
	if err := c.fences(req, m); err != nil {
		return nil, err
	}
	m.Mask, err = c.maskInput(ctx, req)
	return m, err
}

// report adds what only the host knows.
func (c *call) report(r *core.Report, began time.Time) {
	r.Plugin = c.service.plugin
	r.Times.Copy = milliseconds(c.copyTime)
	r.Times.Transport = max(0, milliseconds(time.Since(began))-r.Times.Copy-r.Times.Select-r.Times.Attend-r.Times.Measure)
	if c.copied > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("copied %d bytes: %s not in shared memory", c.copied, strings.Join(c.copiedFrom, ", ")))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
