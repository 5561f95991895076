package wire

import (
	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeParams converts parameter values of the canonical types.
func EncodeParams(params core.Params) (map[string]*pb.Value, error) {
	if len(params) == 0 {
		return nil, nil
	}
	values := make(map[string]*pb.Value, len(params))
	for name, v := range params {
		value, err := encodeValue(v)
		if err != nil {
			return nil, core.Invalid("", "%s: %s", name, err)
		}
		values[name] = value
	}
	return values, nil
}

func encodeValue(v any) (*pb.Value, error) {
	switch v := v.(type) {
	case nil:
		return &pb.Value{}, nil
	case int64:
		return &pb.Value{Value: &pb.Value_IntValue{IntValue: v}}, nil
	case float64:
		return &pb.Value{Value: &pb.Value_FloatValue{FloatValue: v}}, nil
	case bool:
		return &pb.Value{Value: &pb.Value_BoolValue{BoolValue: v}}, nil
	case string:
		return &pb.Value{Value: &pb.Value_StringValue{StringValue: v}}, nil
	case []float64:
		return &pb.Value{Value: &pb.Value_FloatsValue{FloatsValue: &pb.DoubleList{Values: v}}}, nil
	}
	return nil, core.Errorf(core.ErrInternal, "%T: want int64, float64, bool, string, []float64 or nothing", v)
}

// DecodeParams reads parameter values.
func DecodeParams(values map[string]*pb.Value) core.Params {
	if len(values) == 0 {
		return nil
	}
	params := make(core.Params, len(values))
	for name, v := range values {
		params[name] = decodeValue(v)
	}
	return params
}

func decodeValue(v *pb.Value) any {
	switch v := v.GetValue().(type) {
	case *pb.Value_IntValue:
		return v.IntValue
	case *pb.Value_FloatValue:
		return v.FloatValue
	case *pb.Value_BoolValue:
		return v.BoolValue
	case *pb.Value_StringValue:
		return v.StringValue
	case *pb.Value_FloatsValue:
		if list := v.FloatsValue.GetValues(); list != nil {
			return list
		}
		return []float64{}
	}
	return nil
}
