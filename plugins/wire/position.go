package wire

import (
	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodePositionRequest converts a request for a plan.
func EncodePositionRequest(req *core.PositionRequest) (*pb.PlanRequest, error) {
	params, err := EncodeParams(req.Params)
	return &pb.PlanRequest{
		HeadDim: int64(req.HeadDim), InvFreq: req.InvFreq, Length: req.Length, TrainLength: req.TrainLength,
		Interleaved: req.Interleaved, Params: params,
	}, err
}

// DecodePositionRequest reads a request for a plan.
func DecodePositionRequest(m *pb.PlanRequest) (*core.PositionRequest, error) {
	headDim, err := count("head_dim", m.GetHeadDim(), 1)
	if err != nil {
		return nil, err
	}
	if m.GetLength() < 0 || m.GetTrainLength() < 0 {
		return nil, core.Invalid("", "message: length %d, train_length %d: want numbers of at least 0", m.GetLength(), m.GetTrainLength())
	}
	if err := finite("inv_freq", m.GetInvFreq()...); err != nil {
		return nil, err
	}
	return &core.PositionRequest{
		HeadDim: headDim, InvFreq: m.GetInvFreq(), Length: m.GetLength(), TrainLength: m.GetTrainLength(),
		Interleaved: m.GetInterleaved(), Params: DecodeParams(m.GetParams()),
	}, nil
}

// EncodePlan converts a plan; nil stays nil.
func EncodePlan(plan *core.PositionPlan) *pb.PositionPlan {
	if plan == nil {
		return nil
	}
	m := &pb.PositionPlan{
		Strategy: plan.Strategy, InvFreq: plan.InvFreq, AppliedInvFreq: plan.AppliedInvFreq,
		AttentionScale: plan.AttentionScale, Interleaved: plan.Interleaved, Bands: make([]*pb.Band, len(plan.Bands)), Twice: plan.Twice,
	}
	for i, b := range plan.Bands {
		m.Bands[i] = &pb.Band{Chunk: b.Chunk, Low: b.Low, High: b.High, Query: encodeRule(b.Query), Key: encodeRule(b.Key)}
	}
	return m
}

// DecodePlan reads a plan; nil stays nil. The caller validates it against a
// head_dim.
func DecodePlan(m *pb.PositionPlan) (*core.PositionPlan, error) {
	if m == nil {
		return nil, nil
	}
	if len(m.GetBands()) > maxBands {
		return nil, core.Invalid("", "message: %d bands: want at most %d", len(m.GetBands()), maxBands)
	}
	plan := &core.PositionPlan{
		Strategy: m.GetStrategy(), InvFreq: m.GetInvFreq(), AppliedInvFreq: m.GetAppliedInvFreq(),
		AttentionScale: m.GetAttentionScale(), Interleaved: m.GetInterleaved(), Twice: m.GetTwice(),
	}
	for _, b := range m.GetBands() {
		query, err := decodeRule(b.GetQuery())
		if err != nil {
			return nil, err
		}
		key, err := decodeRule(b.GetKey())
		if err != nil {
			return nil, err
		}
		plan.Bands = append(plan.Bands, core.Band{Chunk: b.GetChunk(), Low: b.GetLow(), High: b.GetHigh(), Query: query, Key: key})
	}
	return plan, nil
}

func encodeRule(r core.Rule) *pb.Rule {
	return &pb.Rule{Modulo: r.Modulo, Group: r.Group, Scale: r.Scale, Offset: r.Offset, Limit: r.Limit}
}

func decodeRule(m *pb.Rule) (core.Rule, error) {
	if m == nil {
		return core.Rule{}, absent("rule of a band")
	}
	if m.GetModulo() < 0 || m.GetGroup() < 0 {
		return core.Rule{}, core.Invalid("", "message: rule with modulo %d, group %d: want numbers of at least 0", m.GetModulo(), m.GetGroup())
	}
	if err := finite("rule", m.GetScale(), m.GetOffset(), m.GetLimit()); err != nil {
		return core.Rule{}, err
	}
	return core.Rule{Modulo: m.GetModulo(), Group: m.GetGroup(), Scale: m.GetScale(), Offset: m.GetOffset(), Limit: m.GetLimit()}, nil
}
