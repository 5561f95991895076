package sdk

import (
	"context"
	"slices"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/wire"
)

type attention struct {
	pb.UnimplementedAttentionServiceServer
	*server
}

func (a attention) Select(ctx context.Context, m *pb.SelectRequest) (*pb.SelectResponse, error) {
	memory := newMemory(ctx, a.server)
	defer memory.release()
	strategy, req, err := a.decode(m.GetStrategy(), m.GetAttention(), memory)
	if err != nil {
		return nil, err
	}
	selection, err := strategy.Select(ctx, req)
	if err != nil {
		return nil, err
	}
	mask, err := encodeMask(selection.Mask, m.GetMaskMemory(), memory)
	if err != nil {
		return nil, err
	}
	return &pb.SelectResponse{Selection: &pb.Selection{
		Mask: mask, Reason: selection.Reason, Heads: wire.EncodeHeads(selection.Heads),
	}}, nil
}

func (a attention) Attend(ctx context.Context, m *pb.AttendRequest) (*pb.AttendResponse, error) {
	memory := newMemory(ctx, a.server)
	defer memory.release()
	strategy, req, err := a.decode(m.GetStrategy(), m.GetAttention(), memory)
	if err != nil {
		return nil, err
	}
	if err := checkOutputs(req); err != nil {
		return nil, err
	}
	response, err := a.attend(ctx, strategy, req)
	if err != nil {
		return nil, err
	}
	reply := &pb.AttendResponse{Report: wire.EncodeReport(&response.Report)}
	if req.WantMask {
		reply.Mask, err = encodeMask(response.Mask, m.GetMaskMemory(), memory)
	}
	return reply, err
}

// Forget lets go of memory of devices.
func (a attention) Forget(_ context.Context, m *pb.ForgetRequest) (*pb.ForgetResponse, error) {
	if a.config.Devices == nil {
		return &pb.ForgetResponse{}, nil
	}
	if err := a.config.Devices.Close(m.GetHandles()); err != nil {
		return nil, wire.EncodeError(err)
	}
	return &pb.ForgetResponse{}, nil
}

// attend lets the strategy compute, or select for the kernel.
func (a attention) attend(ctx context.Context, strategy core.AttentionStrategy, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	if attender, ok := strategy.(core.Attender); ok {
		return attender.Attend(ctx, req)
	}
	id := strategy.Info().ID()
	if a.config.Kernel == nil {
		return nil, core.Errorf(core.ErrUnsupported, "%s only selects, and its plugin has no kernel", id).
			WithHint("select, then attend with strategy \"custom\" and the mask")
	}
	began := time.Now()
	selection := &core.Selection{Reason: "force_dense"}
	if !req.ForceDense {
		var err error
		if selection, err = strategy.Select(ctx, req); err != nil {
			return nil, err
		}
	}
	selected := time.Since(began)
	response, err := a.config.Kernel.Attend(ctx, req, selection)
	if err != nil {
		return nil, err
	}
	response.Report.Strategy = id
	response.Report.Times.Select += float64(selected) / float64(time.Millisecond)
	return response, nil
}

func (a attention) decode(name string, m *pb.AttentionRequest, memory *memory) (core.AttentionStrategy, *core.AttentionRequest, error) {
	strategy, info, err := a.lookup(name)
	if err != nil {
		return nil, nil, err
	}
	req, err := wire.DecodeAttention(m, memory)
	if err != nil {
		return nil, nil, err
	}
	if err := info.RunsOn(req.Query.Device()); err != nil {
		return nil, nil, err
	}
	if req.Params, err = info.Validate(req.Params, req.Query.Dim(1)); err != nil {
		return nil, nil, err
	}
	return strategy.(core.AttentionStrategy), req, nil
}

func checkOutputs(req *core.AttentionRequest) error {
	if req.Output == nil {
		return core.Invalid("", "message: output is absent")
	}
	for _, t := range []*tensor.Tensor{req.Output, req.LSE} {
		if t != nil && t.Device() != req.Query.Device() {
			return core.Invalid("", "message: %v written for a query on %s: want one device", t, req.Query.Device())
		}
	}
	if req.Output.Dtype() != req.Query.Dtype() || !slices.Equal(req.Output.Shape(), req.Query.Shape()) {
		return core.Invalid("", "message: output %v: want %v like the query", req.Output, req.Query)
	}
	if lse := req.LSE; lse != nil && (lse.Dtype() != tensor.Float32 || !slices.Equal(lse.Shape(), req.Query.Shape()[:3])) {
		return core.Invalid("", "message: lse %v: want float32%v", lse, req.Query.Shape()[:3])
	}
	return nil
}

// encodeMask writes a mask where the host wants it; nil stays nil.
func encodeMask(mask *core.BlockMask, where *pb.MemoryRef, memory *memory) (*pb.BlockMask, error) {
	if mask == nil {
		return nil, nil
	}
	bytes, err := memory.Segment(where, true)
	if err != nil {
		return nil, core.Invalid("", "message: mask_memory: %s", err)
	}
	return wire.EncodeMask(mask, bytes)
}
