package kernel

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// MeanCorrection is the parameter by which dropped blocks count by their means.
const MeanCorrection = "mean_correction"

func (c *Call) corrects() bool { return c.Params.Bool(MeanCorrection) }

// correct adds what a mask dropped, if the strategy was asked to.
func (c *Call) correct(ctx context.Context, blocks []hardware.Blocks) error {
	if !c.corrects() || blocks == nil {
		return nil
	}
	if c.Problem.Positions != nil {
		return core.Errorf(core.ErrUnsupported, "%s: %s with a position plan that moves positions", c.info.ID(), MeanCorrection).
			WithHint("leave out one of the two")
	}
	return c.Session.AddMeans(ctx, blocks)
}

// keptByMask is the share of the dense mass in the blocks that a mask keeps, by
// row: what the LSE does not tell when it counts dropped blocks too.
func (c *Call) keptByMask(mask *core.BlockMask, set hardware.RowSet, mass hardware.RowMass) []float64 {
	s := &c.Problem.Sequences[set.Sequence]
	blocks := (s.Key[0].Rows + mask.BlockSize - 1) / mask.BlockSize
	kept := make([]float64, len(set.Rows))
	for i, row := range set.Rows {
		if math.IsInf(float64(mass.LSE[i]), -1) { // the row sees no key: nothing was lost
			kept[i] = 1
			continue
		}
		block := (s.Offset+int(row))/mask.BlockSize - s.Offset/mask.BlockSize
		for _, column := range mask.Row(set.Sequence, set.Head, block) {
			kept[i] += float64(mass.Mass[i*blocks+int(column)])
		}
		kept[i] = min(kept[i], 1)
	}
	return kept
}
