package kernel

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// positions translates a plan; nil when it changes nothing.
func positions(plan *core.PositionPlan) *hardware.Positions {
	if plan.IsPlain() {
		return nil
	}
	p := &hardware.Positions{
		Applied:     plan.AppliedInvFreq,
		InvFreq:     plan.InvFreq,
		Scale:       plan.AttentionScale * plan.AttentionScale,
		Interleaved: plan.Interleaved,
	}
	for _, b := range plan.Bands {
		p.Bands = append(p.Bands, hardware.Band{Chunk: b.Chunk, Low: b.Low, High: b.High, Query: rule(b.Query), Key: rule(b.Key)})
	}
	return p
}

func rule(r core.Rule) hardware.Rule {
	return hardware.Rule{Modulo: r.Modulo, Group: r.Group, Scale: r.Scale, Offset: r.Offset, Limit: r.Limit}
}
