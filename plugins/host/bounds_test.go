package host

import (
	"testing"

	"github.com/trivium-ml/trivium/core"
)

func TestUnprovenBoundsAreNoted(t *testing.T) {
	normal := core.HeadReport{Kept: 1, Blocks: 2, CoverageLower: core.Bound(0.5), Bound: core.BoundNormal}
	proven := core.HeadReport{Kept: 1, Blocks: 2, CoverageLower: core.Bound(0.5), Bound: core.BoundProven}
	cases := []struct {
		name  string
		req   core.AttentionRequest
		heads []core.HeadReport
		notes int
	}{
		{"not asked", core.AttentionRequest{}, []core.HeadReport{normal}, 0},
		{"proven", core.AttentionRequest{Bound: core.BoundProven}, []core.HeadReport{proven, proven}, 0},
		{"one is normal", core.AttentionRequest{Bound: core.BoundProven}, []core.HeadReport{proven, normal, normal}, 1},
		{"a plugin of before", core.AttentionRequest{Bound: core.BoundProven}, []core.HeadReport{{Kept: 1, Blocks: 2}}, 1},
		{"everything is kept", core.AttentionRequest{Bound: core.BoundProven}, []core.HeadReport{{Kept: 2, Blocks: 2}}, 0},
		{"no report", core.AttentionRequest{Bound: core.BoundProven, OmitReport: true}, []core.HeadReport{normal}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			report := core.Report{Heads: c.heads}
			if noteUnproven(&report, &c.req); len(report.Notes) != c.notes {
				t.Errorf("notes %q, want %d", report.Notes, c.notes)
			}
		})
	}
}
