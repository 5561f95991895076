package kernel

import (
	"context"
	"math"
	"math/rand/v2"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
)

// boundZ is how many standard errors below the mean the reported bound lies.
const boundZ = 3

// measure fills in coverage: the dense softmax mass of the kept keys. Kept and
// dense mass differ only in their sums, so the ratio of the LSE that the kernel
// wrote to the dense LSE of the same row is exact, at no second pass.
func (c *Call) measure(ctx context.Context, report *core.Report, mask *core.BlockMask) error {
	if mask == nil {
		p := probingOf(c.Request)
		for i := range report.Heads {
			p.complete(&report.Heads[i])
		}
		report.Coverage = core.Bound(1)
		return nil
	}
	if c.Request.ProbeRows > 0 {
		if err := c.probe(ctx, report, mask); err != nil {
			return err
		}
	} else {
		c.reuse(report)
	}
	report.Coverage = meanCoverage(report.Heads)
	return nil
}

// meanCoverage is over the heads with anything to see; nil when one of them was
// not measured.
func meanCoverage(heads []core.HeadReport) *float64 {
	sum, count := 0.0, 0
	for _, h := range heads {
		if h.Blocks == 0 {
			continue
		}
		if h.Coverage == nil {
			return nil
		}
		sum, count = sum+*h.Coverage, count+1
	}
	if count == 0 {
		return nil
	}
	return core.Bound(sum / float64(count))
}

// judgesNote is what coverage means when nothing was asked.
const judgesNote = "coverage is that of the rows which chose the blocks; ask for probe_rows to measure all"

// reuse takes the rows that the strategy scored for its own purpose.
func (c *Call) reuse(report *core.Report) {
	used := false
	for slot, m := range c.measured {
		if len(m.lse) == 0 || report.Heads[slot].Coverage != nil { // a promise says more
			continue
		}
		rows := make([]int32, len(m.lse))
		for i := range rows {
			rows[i] = int32(m.first + i)
		}
		kept := c.keptMass(slot, rows, m.lse)
		mean, _ := meanAndBound(kept)
		report.Heads[slot].Coverage, report.Heads[slot].ProbeRows = Number(mean), len(rows)
		used = true
	}
	if used {
		report.Notes = append(report.Notes, judgesNote)
	}
}

// probe measures seeded random rows.
func (c *Call) probe(ctx context.Context, report *core.Report, mask *core.BlockMask) error {
	probing := probingOf(c.Request)
	sets := make([]hardware.RowSet, 0, len(report.Heads))
	for slot := range report.Heads {
		set := hardware.RowSet{Sequence: slot / c.Heads, Head: slot % c.Heads}
		n := c.Problem.Sequences[set.Sequence].Query[set.Head].Rows
		if n == 0 || c.Problem.Sequences[set.Sequence].Key[0].Rows == 0 {
			continue
		}
		set.Rows = probing.rows(slot, n)
		sets = append(sets, set)
	}
	size := defaultBlock
	if c.corrects() {
		size = mask.BlockSize
	}
	masses, err := c.Session.RowMass(ctx, sets, size)
	if err != nil {
		return err
	}
	for i, set := range sets {
		slot := c.Slot(set.Sequence, set.Head)
		var kept []float64
		if c.corrects() {
			kept = c.keptByMask(mask, set, masses[i])
		} else {
			kept = c.keptMass(slot, set.Rows, masses[i].LSE)
		}
		n := c.Problem.Sequences[set.Sequence].Query[set.Head].Rows
		probing.report(&report.Heads[slot], kept, drawn{slot: slot, rows: n, heads: len(report.Heads)})
	}
	return nil
}

// keptMass is the share of the dense mass that the kernel summed, by row.
func (c *Call) keptMass(slot int, rows []int32, dense []float32) []float64 {
	lse := c.Problem.Sequences[slot/c.Heads].LSE[slot%c.Heads]
	kept := make([]float64, len(rows))
	for i, row := range rows {
		kept[i] = math.Exp(float64(lse[row]) - float64(dense[i]))
		if sinks := c.Request.Sinks; sinks != nil {
			kept[i] -= math.Exp(float64(sinks[slot%c.Heads]) - float64(dense[i]))
		}
		if math.IsInf(float64(dense[i]), -1) { // the row sees no key: nothing was lost
			kept[i] = 1
		}
		kept[i] = min(max(kept[i], 0), 1)
	}
	return kept
}

// Number is x for a report; nil when it is none, as of inputs with NaN.
func Number(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}

// StratifiedRows draws one random row in each of count equal strata of n rows,
// rising; all rows when there are no more than count.
func StratifiedRows(seed int64, stream, n, count int) []int32 {
	count = min(count, n)
	random := rand.New(rand.NewPCG(uint64(seed), uint64(stream)))
	rows := make([]int32, count)
	for k := range rows {
		low, high := k*n/count, (k+1)*n/count
		rows[k] = int32(low + random.IntN(high-low))
	}
	return rows
}

// meanAndBound is the mean of rows in order of position and a lower confidence
// bound for it. The variance is that of neighbours, so that a trend along the
// sequence does not widen it.
func meanAndBound(x []float64) (mean, bound float64) {
	for _, v := range x {
		mean += v / float64(len(x))
	}
	if len(x) < 2 {
		return mean, 0
	}
	squares := 0.0
	for i := range x[1:] {
		squares += (x[i+1] - x[i]) * (x[i+1] - x[i])
	}
	variance := squares / float64(2*(len(x)-1))
	return mean, max(0, mean-boundZ*math.Sqrt(variance/float64(len(x))))
}
