package wire

import (
	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeDevice converts what a plugin says of an accelerator.
func EncodeDevice(d core.Device) *pb.Device {
	return &pb.Device{
		Name: valid(d.Name), Model: valid(d.Model), Driver: valid(d.Driver), Compiler: valid(d.Compiler),
		Cache: valid(d.Cache), Missing: valid(d.Missing), Hint: valid(d.Hint),
	}
}

// DecodeDevice reads it.
func DecodeDevice(m *pb.Device) core.Device {
	return core.Device{
		Name: m.GetName(), Model: m.GetModel(), Driver: m.GetDriver(), Compiler: m.GetCompiler(),
		Cache: m.GetCache(), Missing: m.GetMissing(), Hint: m.GetHint(),
	}
}
