package kernel

import (
	"context"
	"slices"
	"strings"

	"github.com/trivium-ml/trivium/core"
)

// WithCoverage adds the parameters by which a strategy's blocks are topped up
// until a promised coverage is reached. A strategy with a gamma of its own
// promises that one.
func WithCoverage(parameters []core.Parameter) []core.Parameter {
	parameters = append(parameters, core.Parameter{Name: "coverage", Type: core.String, Default: "report", Choices: []string{"report", "enforce"},
		Doc: "enforce: keep further tiles of each head until a lower confidence bound of its coverage reaches gamma"})
	if !slices.ContainsFunc(parameters, func(p core.Parameter) bool { return p.Name == "gamma" }) {
		parameters = append(parameters, Gamma("attention mass each head keeps, with coverage enforce"))
	}
	return parameters
}

func (c *Call) enforces() bool { return c.Params.Text("coverage") == "enforce" }

// enforce tops up what a strategy chose by the rule of the strategy probe.
func (c *Call) enforce(ctx context.Context, chosen *core.Selection) (*core.Selection, error) {
	if _, err := c.blocks(chosen.Mask); err != nil { // a caller's mask may be of another shape
		return nil, err
	}
	heads := chosen.Heads
	if heads == nil {
		heads = c.describeMask(chosen)
	}
	promised, err := c.Promise(ctx, chosen.Mask.BlockSize, func(h *Head) {
		h.Report = heads[c.Slot(h.Sequence, h.Head)]
		for row := range h.QueryBlocks {
			for _, column := range chosen.Mask.Row(h.Sequence, h.Head, row) {
				h.Keep(row, int(column))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if chosen.Reason != "" {
		promised.Reason = strings.TrimPrefix(promised.Reason+"; "+chosen.Reason, "; ")
	}
	return promised, nil
}
