package flexprefill

import (
	"fmt"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// selectOnDevice is selectBlocks on a GPU: nothing waits for the device.
func selectOnDevice(call *kernel.DeviceCall, p *kernel.Part) (*kernel.DeviceSelection, error) {
	s, err := deviceSelection(call, p)
	if err != nil {
		return nil, err
	}
	if reason := denseReason(call, p, s); reason != "" {
		return &kernel.DeviceSelection{Pattern: "dense", Reason: reason}, nil
	}
	if call.Request.Window > 0 || call.Request.Softcap > 0 {
		call.Note("blocks were chosen without window and softcap")
	}
	selected, err := call.Work.Select(s)
	if err != nil {
		return nil, err
	}
	return &kernel.DeviceSelection{Mask: &selected.Mask, Describe: func(heads []core.HeadReport) error {
		return describeHeads(call, selected, heads)
	}}, nil
}

// deviceSelection reads the parameters as the device takes them.
func deviceSelection(call *kernel.DeviceCall, p *kernel.Part) (cuda.Selection, error) {
	if size := call.Params.Int("block_size"); size != cuda.Tile {
		return cuda.Selection{}, call.Unsupported("block_size %d, not %d,", size, cuda.Tile)
	}
	rule := call.Params.Text("rule")
	if rule == "paper" {
		return cuda.Selection{}, call.Unsupported("rule %q", rule)
	}
	s := cuda.Selection{Query: p.Query, Key: p.Key, Half: call.Half, Released: rule == "released",
		Scale: call.Scale(p), Gamma: float32(call.Params.FloatAt("gamma", 0)), Tau: float32(call.Params.FloatAt("tau", 0))}
	for h := range call.Heads {
		if call.Params.FloatAt("gamma", h) != call.Params.FloatAt("gamma", 0) || call.Params.FloatAt("tau", h) != call.Params.FloatAt("tau", 0) {
			return cuda.Selection{}, call.Unsupported("a gamma or tau for each head")
		}
	}
	s.MinBlocks = max(1, ceilDiv(call.Params.Int("min_budget"), cuda.Tile))
	if call.Params.IsSet("max_budget") {
		s.MaxBlocks = ceilDiv(call.Params.Int("max_budget"), cuda.Tile)
	}
	return s, nil
}

// denseReason says why a part is attended to densely; "": it is not.
func denseReason(call *kernel.DeviceCall, p *kernel.Part, s cuda.Selection) string {
	switch {
	case !call.Request.Causal:
		return "flexprefill selects for causal attention only"
	case p.Key.Rows <= s.DenseBelow():
		return fmt.Sprintf("prompts of at most %d tokens gain nothing", s.DenseBelow())
	case p.Offset != 0 || p.Query.Rows != p.Key.Rows:
		return "on cuda flexprefill selects for whole prompts, not for chunks"
	case s.Gamma >= 1:
		return "gamma 1 keeps everything"
	}
	return ""
}

// describeHeads adds what the heads were chosen by; it waits.
func describeHeads(call *kernel.DeviceCall, selected cuda.Selected, heads []core.HeadReport) error {
	distances, err := call.Words(selected.JSDistance, len(heads))
	if err != nil {
		return err
	}
	aware, err := call.Words(selected.QueryAware, len(heads))
	if err != nil {
		return err
	}
	for i := range heads {
		heads[i].Pattern = "vertical_slash"
		if aware[i] != 0 {
			heads[i].Pattern = "query_aware"
		}
		heads[i].JSDistance = kernel.Number(float64(math.Float32frombits(uint32(distances[i]))))
	}
	return nil
}
