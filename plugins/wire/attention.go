package wire

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeAttention converts a request, less its tensors, fences and mask, whose
// references the caller adds.
func EncodeAttention(req *core.AttentionRequest) (*pb.AttentionRequest, error) {
	params, err := EncodeParams(req.Params)
	return &pb.AttentionRequest{
		QueryOffset: req.QueryOffset, KeyStart: req.KeyStart, KeyEnd: req.KeyEnd, CuSeqlens: req.CuSeqlens,
		Scale: req.Scale, Causal: req.Causal, Window: req.Window, Softcap: req.Softcap, Sinks: req.Sinks,
		Position: EncodePlan(req.Position), Params: params, Layer: int64(req.Layer), Threads: int64(req.Threads),
		Seed: req.Seed, WantMask: req.WantMask, ProbeRows: int64(req.ProbeRows), ForceDense: req.ForceDense,
		OmitReport: req.OmitReport, Bound: req.Bound, Delta: req.Delta, Precision: string(req.Precision),
	}, err
}

// DecodeAttention reads a request and checks it like any other: shapes that fit
// each other, sequences inside of them, a mask on their grid. Output and LSE
// may be absent.
func DecodeAttention(m *pb.AttentionRequest, memory Memory) (*core.AttentionRequest, error) {
	if m == nil {
		return nil, absent("request")
	}
	req := &core.AttentionRequest{
		QueryOffset: m.GetQueryOffset(), KeyStart: m.GetKeyStart(), KeyEnd: m.GetKeyEnd(), CuSeqlens: m.GetCuSeqlens(),
		Scale: m.GetScale(), Causal: m.GetCausal(), Window: m.GetWindow(), Softcap: m.GetSoftcap(), Sinks: m.GetSinks(),
		Params: DecodeParams(m.GetParams()), Seed: m.GetSeed(), WantMask: m.GetWantMask(), ForceDense: m.GetForceDense(),
		OmitReport: m.GetOmitReport(), Bound: m.GetBound(), Delta: m.GetDelta(), Precision: core.Precision(m.GetPrecision()),
	}
	for _, step := range []func(*pb.AttentionRequest, *core.AttentionRequest, Memory) error{
		decodeCounts, decodeTensors, decodeFences, decodePosition, validate, decodeCallersMask,
	} {
		if err := step(m, req, memory); err != nil {
			return nil, err
		}
	}
	return req, nil
}

func decodeCounts(m *pb.AttentionRequest, req *core.AttentionRequest, _ Memory) (err error) {
	if req.Layer, err = count("layer", m.GetLayer(), -1); err != nil {
		return err
	}
	if req.Threads, err = count("threads", m.GetThreads(), 0); err != nil {
		return err
	}
	req.ProbeRows, err = count("probe_rows", m.GetProbeRows(), 0)
	return err
}

func decodeFences(m *pb.AttentionRequest, req *core.AttentionRequest, memory Memory) (err error) {
	if req.Ready, err = decodeFence("ready", m.GetReady(), memory); err != nil {
		return err
	}
	if req.Done, err = decodeFence("done", m.GetDone(), memory); err != nil {
		return err
	}
	for _, f := range []*tensor.Fence{req.Ready, req.Done} {
		if f != nil && f.Device != req.Query.Device() {
			return core.Invalid("", "message: a fence on %s for a query on %s: want one device", f.Device, req.Query.Device())
		}
	}
	return nil
}

func decodeTensors(m *pb.AttentionRequest, req *core.AttentionRequest, memory Memory) (err error) {
	if req.Query, err = DecodeTensor("query", m.GetQuery(), memory, false); err != nil {
		return err
	}
	if req.Key, err = DecodeTensor("key", m.GetKey(), memory, false); err != nil {
		return err
	}
	if req.Value, err = DecodeTensor("value", m.GetValue(), memory, false); err != nil {
		return err
	}
	if m.GetOutput() != nil {
		if req.Output, err = DecodeTensor("output", m.GetOutput(), memory, true); err != nil {
			return err
		}
	}
	if m.GetLse() != nil {
		req.LSE, err = DecodeTensor("lse", m.GetLse(), memory, true)
	}
	return err
}

func decodePosition(m *pb.AttentionRequest, req *core.AttentionRequest, _ Memory) (err error) {
	req.Position, err = DecodePlan(m.GetPosition())
	return err
}

func validate(_ *pb.AttentionRequest, req *core.AttentionRequest, _ Memory) error {
	return req.Validate()
}

func decodeCallersMask(m *pb.AttentionRequest, req *core.AttentionRequest, memory Memory) error {
	if m.GetMask() == nil {
		return nil
	}
	bytes, err := memory.Segment(m.GetMask().GetMemory(), false)
	if err != nil {
		return core.Invalid("", "message: block mask: %s", err)
	}
	if req.Mask, err = DecodeMask(m.GetMask(), bytes); err != nil {
		return err
	}
	return CheckCallersMask(req.Mask, req)
}
