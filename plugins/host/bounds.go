package host

import "github.com/trivium-ml/trivium/core"

// noteUnproven says in the report that bounds which were to be proven are not: a
// plugin may be of before there were proofs, or attend in its own way.
func noteUnproven(report *core.Report, req *core.AttentionRequest) {
	if req.Bound != core.BoundProven || req.OmitReport {
		return
	}
	for _, h := range report.Heads {
		if h.Kept < h.Blocks && h.Bound != core.BoundProven {
			report.Notes = append(report.Notes, "a proven bound of coverage was asked for, which this plugin does not give")
			return
		}
	}
}
