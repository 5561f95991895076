package wire

import (
	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeInfo converts the description of a strategy, less the plugin's name,
// which the host gives.
func EncodeInfo(info core.Info) (*pb.StrategyInfo, error) {
	parameters := make([]*pb.Parameter, len(info.Parameters))
	for i, p := range info.Parameters {
		value, err := encodeValue(p.Default)
		if err != nil {
			return nil, core.Invalid(info.ID(), "default of %s: %s", p.Name, err)
		}
		parameters[i] = &pb.Parameter{
			Name: p.Name, Type: encodeParameterType(p.Type), Default: value, Doc: p.Doc, Unit: p.Unit, Choices: p.Choices,
			Min: p.Min, Max: p.Max, OpenMin: p.OpenMin, OpenMax: p.OpenMax, PerHead: p.PerHead, Optional: p.Optional,
		}
	}
	return &pb.StrategyInfo{
		Name: info.Name, Kind: EncodeKind(info.Kind), Summary: info.Summary, Paper: info.Paper, License: info.License,
		Version: info.Version, Parameters: parameters, Capabilities: encodeCapabilities(info.Capabilities), Notes: info.Notes,
	}, nil
}

// DecodeInfo reads the description of a strategy.
func DecodeInfo(m *pb.StrategyInfo) (core.Info, error) {
	kind, err := DecodeKind(m.GetKind())
	if err != nil {
		return core.Info{}, err
	}
	info := core.Info{
		Name: m.GetName(), Kind: kind, Summary: m.GetSummary(), Paper: m.GetPaper(), License: m.GetLicense(),
		Version: m.GetVersion(), Notes: m.GetNotes(),
	}
	if info.Name == "" {
		return core.Info{}, absent("name of a strategy")
	}
	for _, p := range m.GetParameters() {
		parameter, err := decodeParameter(p)
		if err != nil {
			return core.Info{}, err
		}
		info.Parameters = append(info.Parameters, parameter)
	}
	info.Capabilities, err = decodeCapabilities(m.GetCapabilities())
	return info, err
}

func decodeParameter(m *pb.Parameter) (core.Parameter, error) {
	kind, err := decodeParameterType(m.GetType())
	if err != nil {
		return core.Parameter{}, err
	}
	return core.Parameter{
		Name: m.GetName(), Type: kind, Default: decodeValue(m.GetDefault()), Doc: m.GetDoc(), Unit: m.GetUnit(),
		Choices: m.GetChoices(), Min: m.Min, Max: m.Max, OpenMin: m.GetOpenMin(), OpenMax: m.GetOpenMax(), PerHead: m.GetPerHead(), Optional: m.GetOptional(),
	}, nil
}

func encodeCapabilities(c core.Capabilities) *pb.Capabilities {
	return &pb.Capabilities{
		Dtypes: c.Dtypes, Devices: c.Devices, MaxHeadDim: int64(c.MaxHeadDim), Gqa: c.GQA, Varlen: c.Varlen, Chunked: c.Chunked,
		Deterministic: c.Deterministic, Attends: c.Attends, Weights: c.Weights, ChunkRule: c.ChunkRule,
	}
}

func decodeCapabilities(m *pb.Capabilities) (core.Capabilities, error) {
	maxHeadDim, err := count("max_head_dim", m.GetMaxHeadDim(), 0)
	return core.Capabilities{
		Dtypes: m.GetDtypes(), Devices: m.GetDevices(), MaxHeadDim: maxHeadDim, GQA: m.GetGqa(), Varlen: m.GetVarlen(),
		Chunked: m.GetChunked(), Deterministic: m.GetDeterministic(), Attends: m.GetAttends(), Weights: m.GetWeights(),
		ChunkRule: m.GetChunkRule(),
	}, err
}
