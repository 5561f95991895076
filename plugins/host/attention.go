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
	began := time.Now()
	response := &core.AttentionResponse{}
	err := a.call(ctx, func(ctx context.Context, c *call) error {
		m, err := c.request(ctx, req)
		if err != nil {
			return err
		}
		if m.Output, err = c.output(ctx, "output", req.Output); err != nil {
			return err
		}
		if req.LSE != nil {
			if m.Lse, err = c.output(ctx, "lse", req.LSE); err != nil {
				return err
			}
		}
		var room *pb.MemoryRef
		var segment *shm.Segment
		if req.WantMask {
			if room, segment, err = c.maskRoom(ctx, req); err != nil {
				return err
			}
		}
		var reply *pb.AttendResponse
		if err := c.invoke(func() (err error) {
			remote := &pb.AttendRequest{CallId: c.id, Strategy: a.info.Name, Attention: m, MaskMemory: room}
			reply, err = pb.NewAttentionServiceClient(c.session.Conn).Attend(ctx, remote, callOptions...)
			return err
		}); err != nil {
			return err
		}
		if response.Report, err = wire.DecodeReport(reply.GetReport()); err != nil {
			return badAnswer(err)
		}
		if response.Mask, err = takeMask(reply.GetMask(), segment, req); err != nil {
			return badAnswer(err)
		}
		c.copyBack()
		c.report(&response.Report, began)
		return nil
	})
	if err != nil {
		return nil, err
	}
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
