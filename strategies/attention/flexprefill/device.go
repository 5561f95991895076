package flexprefill

import (
	"fmt"
	"math"
	"slices"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cuda"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
)

// selectOnDevice is selectBlocks on a GPU: nothing waits for the device.
func selectOnDevice(call *kernel.DeviceCall, p *kernel.Part) (*kernel.DeviceSelection, error) {
	s := deviceSelection(call, p)
	if reason := denseReason(call, p, s); reason != "" {
		return &kernel.DeviceSelection{Pattern: "dense", Reason: reason}, nil
	}
	// The device's last queries are the last of the keys, and fill a block.
	if !call.Tiled() || p.Query.Rows < cuda.Tile || p.Offset+p.Query.Rows != p.Key.Rows {
		return kernel.OnHost(call, p)
	}
	selected, err := call.Work.Select(s)
	if err != nil {
		return nil, err
	}
	return &kernel.DeviceSelection{Mask: &selected.Mask, Judges: call.LastRows(p, cuda.Tile), Describe: func(heads []core.HeadReport) error {
		return describeHeads(call, selected, heads)
	}}, nil
}

// deviceSelection reads the parameters as the device takes them.
func deviceSelection(call *kernel.DeviceCall, p *kernel.Part) cuda.Selection {
	s := cuda.Selection{Query: p.Query, Key: p.Key, Half: call.Half, Rule: rules[call.Params.Text("rule")],
		Scale: call.Scale(p), HeadGamma: call.PerHead("gamma"), HeadTau: call.PerHead("tau"),
		Window: int(call.Request.Window), Softcap: float32(call.Request.Softcap)}
	s.Rotated, s.Turn, s.Band = p.Far()
	s.MinBlocks = max(1, ceilDiv(call.Params.Int("min_budget"), cuda.Tile))
	if call.Params.IsSet("max_budget") {
		s.MaxBlocks = ceilDiv(call.Params.Int("max_budget"), cuda.Tile)
	}
	return s
}

var rules = map[string]cuda.Rule{"released": cuda.Released, "fixed": cuda.Fixed, "paper": cuda.Paper}

// denseReason says why a part is attended to densely; "": it is not.
func denseReason(call *kernel.DeviceCall, p *kernel.Part, s cuda.Selection) string {
	switch {
	case !call.Request.Causal:
		return "flexprefill selects for causal attention only"
	case call.Tiled() && p.Key.Rows <= s.DenseBelow():
		return fmt.Sprintf("prompts of at most %d tokens gain nothing", s.DenseBelow())
	case slices.Min(s.HeadGamma) >= 1 && s.MaxBlocks == 0:
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
