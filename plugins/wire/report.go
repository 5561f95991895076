package wire

import (
	"github.com/trivium-ml/trivium/core"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// EncodeReport converts the report of a call. What the host adds, the plugin's
// name and the times of transport and copies, stays behind.
func EncodeReport(r *core.Report) *pb.Report {
	return &pb.Report{
		Strategy: r.Strategy, Position: r.Position, Backend: r.Backend, Threads: int64(r.Threads), Density: r.Density,
		Coverage: r.Coverage, Times: &pb.Times{SelectMs: r.Times.Select, AttendMs: r.Times.Attend, MeasureMs: r.Times.Measure},
		Heads: EncodeHeads(r.Heads), Notes: r.Notes, Precision: string(r.Precision),
	}
}

// DecodeReport reads the report of a call.
func DecodeReport(m *pb.Report) (core.Report, error) {
	if m == nil {
		return core.Report{}, absent("report")
	}
	threads, err := count("threads", m.GetThreads(), 0)
	if err != nil {
		return core.Report{}, err
	}
	if err := finite("report", m.GetDensity(), m.GetCoverage(), m.GetTimes().GetSelectMs(), m.GetTimes().GetAttendMs(), m.GetTimes().GetMeasureMs()); err != nil {
		return core.Report{}, err
	}
	heads, err := DecodeHeads(m.GetHeads())
	return core.Report{
		Strategy: m.GetStrategy(), Position: m.GetPosition(), Backend: m.GetBackend(), Threads: threads, Density: m.GetDensity(),
		Coverage: m.Coverage, Times: core.Times{Select: m.GetTimes().GetSelectMs(), Attend: m.GetTimes().GetAttendMs(), Measure: m.GetTimes().GetMeasureMs()},
		Heads: heads, Notes: m.GetNotes(), Precision: core.Precision(m.GetPrecision()),
	}, err
}

// EncodeHeads converts the reports of heads.
func EncodeHeads(heads []core.HeadReport) []*pb.HeadReport {
	if len(heads) == 0 {
		return nil
	}
	messages := make([]*pb.HeadReport, len(heads))
	for i := range heads {
		h := &heads[i]
		messages[i] = &pb.HeadReport{
			Sequence: int64(h.Sequence), Head: int64(h.Head), Pattern: h.Pattern, KeptBlocks: h.Kept, Blocks: h.Blocks,
			Density: h.Density, Coverage: h.Coverage, CoverageLower: h.CoverageLower, ProbeRows: int64(h.ProbeRows),
			JsDistance: h.JSDistance, BlocksAdded: h.BlocksAdded, Bound: h.Bound, Delta: h.Delta, CoverageLowerAll: h.CoverageLowerAll,
		}
	}
	return messages
}

// DecodeHeads reads the reports of heads.
func DecodeHeads(messages []*pb.HeadReport) ([]core.HeadReport, error) {
	if len(messages) == 0 {
		return nil, nil
	}
	heads := make([]core.HeadReport, len(messages))
	for i, m := range messages {
		head, err := decodeHead(m)
		if err != nil {
			return nil, err
		}
		heads[i] = head
	}
	return heads, nil
}

func decodeHead(m *pb.HeadReport) (core.HeadReport, error) {
	if m == nil {
		return core.HeadReport{}, absent("report of a head")
	}
	sequence, err := count("sequence", m.GetSequence(), 0)
	if err != nil {
		return core.HeadReport{}, err
	}
	head, err := count("head", m.GetHead(), 0)
	if err != nil {
		return core.HeadReport{}, err
	}
	if err := finite("report of a head", m.GetDensity(), m.GetCoverage(), m.GetCoverageLower(), m.GetJsDistance(), m.GetDelta(), m.GetCoverageLowerAll()); err != nil {
		return core.HeadReport{}, err
	}
	rows, err := count("probe_rows", m.GetProbeRows(), 0)
	return core.HeadReport{
		Sequence: sequence, Head: head, Pattern: m.GetPattern(), Kept: m.GetKeptBlocks(), Blocks: m.GetBlocks(),
		Density: m.GetDensity(), Coverage: m.Coverage, CoverageLower: m.CoverageLower, ProbeRows: rows,
		JSDistance: m.JsDistance, BlocksAdded: m.GetBlocksAdded(), Bound: m.GetBound(), Delta: m.GetDelta(), CoverageLowerAll: m.CoverageLowerAll,
	}, err
}
