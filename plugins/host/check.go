package host

import (
	"context"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/confine"
)

// Checked is what Check found of one plugin process.
type Checked struct {
	PluginStatus
	Error   string        `json:"error,omitempty"`
	Hint    string        `json:"hint,omitempty"`
	Devices []core.Device `json:"devices,omitempty"` // accelerators of attention strategies
}

// Confinable says what of this kernel can confine plugins, and what bounds their
// memory.
func Confinable() map[string]any {
	return map[string]any{"landlock": confine.LandlockABI(), "seccomp": confine.HasSeccomp(), "memory": "rlimit"}
}

// Check starts every process and asks it what it serves.
func (h *Host) Check(ctx context.Context) []Checked {
	var list []Checked
	for _, r := range h.refused {
		list = append(list, Checked{PluginStatus: r, Error: r.Reason})
	}
	for _, s := range h.services {
		p := s.hold()
		session, err := s.session(ctx, p)
		c := Checked{PluginStatus: s.status()}
		if err == nil && s.kind == core.Attention {
			c.Devices = s.devices(ctx, session)
		}
		if err != nil {
			typed := core.AsError(err)
			c.Error, c.Hint = typed.Message, typed.Hint
		}
		s.letGo(p)
		list = append(list, c)
	}
	return list
}
