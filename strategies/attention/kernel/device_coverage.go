package kernel

import (
	"math"
	"slices"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// measure fills in coverage as Call.measure does: the device finds the dense
// LSE of the probed rows and holds it against the LSE that attending wrote.
func (c *DeviceCall) measure() error {
	if !c.waits {
		return nil
	}
	start := time.Now()
	if err := probingOf(c.Request).check(c.info, c.report.Heads); err != nil {
		return err
	}
	if c.everything() {
		probing := probingOf(c.Request)
		for i := range c.report.Heads {
			probing.complete(&c.report.Heads[i])
		}
		c.report.Coverage = core.Bound(1)
		return nil
	}
	heads := c.report.Heads
	for i := range c.parts {
		p := &c.parts[i]
		count := p.Count * c.Heads
		if err := c.probe(p, c.kept[i].judges, heads[:count]); err != nil {
			return err
		}
		heads = heads[count:]
	}
	c.report.Coverage = meanCoverage(c.report.Heads)
	c.report.Times.Measure = milliseconds(time.Since(start))
	return nil
}

// probe measures a part on random rows, if the caller asked for some, or on
// those that chose. heads are its reports.
func (c *DeviceCall) probe(p *Part, judges [][]int32, heads []core.HeadReport) error {
	random, probing := c.Request.ProbeRows > 0, probingOf(c.Request)
	if !random && judges == nil {
		return nil
	}
	rows := make([][]int32, len(heads))
	for i := range rows {
		switch {
		case random:
			rows[i] = probing.rows(p.First*c.Heads+i, p.Query.Rows)
		case heads[i].Coverage == nil: // a promise says more
			rows[i] = judges[i]
		}
	}
	kept, err := c.certify(p, rows)
	if err != nil {
		return err
	}
	for i, x := range kept {
		if len(x) == 0 {
			continue
		}
		if random {
			probing.report(&heads[i], x, drawn{slot: p.First*c.Heads + i, rows: p.Query.Rows, heads: len(c.report.Heads)})
			continue
		}
		mean, _ := meanAndBound(x)
		heads[i].Coverage, heads[i].ProbeRows = Number(mean), len(x)
		c.Note(judgesNote)
	}
	return nil
}

// certify is the share of the dense mass that was kept, by row. rows: of each
// head of the part.
func (c *DeviceCall) certify(p *Part, rows [][]int32) ([][]float64, error) {
	table, count := probeTable(rows)
	if count == 0 {
		return make([][]float64, len(rows)), nil
	}
	var at [3]cuda.Address // rows, dense, kept
	for i := range at {
		var err error
		if at[i], err = c.Work.Scratch(4 * len(table)); err != nil {
			return nil, err
		}
	}
	if err := c.Work.Upload(at[0], words(table)); err != nil {
		return nil, err
	}
	if err := c.Work.Certify(c.attention(p), cuda.Probes{Rows: at[0], Count: count, Dense: at[1], Kept: at[2]}); err != nil {
		return nil, err
	}
	bits, err := c.Words(at[2], len(table))
	if err != nil {
		return nil, err
	}
	kept := make([][]float64, len(rows))
	for i, of := range rows {
		for j := range of {
			kept[i] = append(kept[i], float64(math.Float32frombits(uint32(bits[i*count+j]))))
		}
	}
	return kept, nil
}

// probeTable is rows in lines of equal length, -1 where there is none.
func probeTable(rows [][]int32) (table []int32, count int) {
	for _, of := range rows {
		count = max(count, len(of))
	}
	for _, of := range rows {
		table = append(table, of...)
		for range count - len(of) {
			table = append(table, -1)
		}
	}
	return table, count
}

// LastRows are the last rows of each head of a part, for DeviceSelection.Judges.
func (c *DeviceCall) LastRows(p *Part, count int) [][]int32 {
	last := make([]int32, min(count, p.Query.Rows))
	for i := range last {
		last[i] = int32(p.Query.Rows - len(last) + i)
	}
	return slices.Repeat([][]int32{last}, p.Count*c.Heads)
}
