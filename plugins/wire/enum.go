package wire

import (
	"strings"

	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// The names of enum values are those of core behind a prefix, so that neither
// side keeps a list of the other's.
const (
	strategyKindPrefix  = "STRATEGY_KIND_"
	parameterTypePrefix = "PARAMETER_TYPE_"
	errorKindPrefix     = "ERROR_KIND_"
)

// EncodeKind names a kind of strategy; an unknown one is unspecified.
func EncodeKind(kind core.StrategyKind) pb.StrategyKind {
	return pb.StrategyKind(pb.StrategyKind_value[strategyKindPrefix+strings.ToUpper(string(kind))])
}

// DecodeKind reads a kind of strategy.
func DecodeKind(kind pb.StrategyKind) (core.StrategyKind, error) {
	name, ok := pb.StrategyKind_name[int32(kind)]
	if !ok || kind == pb.StrategyKind_STRATEGY_KIND_UNSPECIFIED {
		return "", core.Invalid("", "message: strategy kind %d is not known", kind)
	}
	return core.StrategyKind(lower(name, strategyKindPrefix)), nil
}

func encodeParameterType(t core.ParameterType) pb.ParameterType {
	return pb.ParameterType(pb.ParameterType_value[parameterTypePrefix+strings.ToUpper(string(t))])
}

func decodeParameterType(t pb.ParameterType) (core.ParameterType, error) {
	name, ok := pb.ParameterType_name[int32(t)]
	if !ok || t == pb.ParameterType_PARAMETER_TYPE_UNSPECIFIED {
		return "", core.Invalid("", "message: parameter type %d is not known", t)
	}
	return core.ParameterType(lower(name, parameterTypePrefix)), nil
}

func encodeErrorKind(kind core.ErrorKind) pb.ErrorKind {
	return pb.ErrorKind(pb.ErrorKind_value[errorKindPrefix+strings.ToUpper(string(kind))])
}

// decodeErrorKind reads a kind of error; one that is not known here, of a
// newer plugin, is internal.
func decodeErrorKind(kind pb.ErrorKind) core.ErrorKind {
	name, ok := pb.ErrorKind_name[int32(kind)]
	if !ok || kind == pb.ErrorKind_ERROR_KIND_UNSPECIFIED {
		return core.ErrInternal
	}
	return core.ErrorKind(lower(name, errorKindPrefix))
}

func lower(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
