package sdktest

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// kernelName is the strategy that the engine lets attend to what others select.
const kernelName = "custom"

// kernel attends to selected tiles in float64, the slow and plain way.
type kernel struct{}

var _ core.Attender = kernel{}

func (kernel) Info() core.Info {
	return core.Info{
		Name: kernelName, Kind: core.Attention, Summary: "the suite's reference kernel", License: "Apache-2.0", Version: "1",
		Capabilities: core.Capabilities{GQA: true, Varlen: true, Chunked: true, Deterministic: true, Attends: true},
	}
}

func (kernel) Select(_ context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	return &core.Selection{Mask: req.Mask}, nil
}

func (kernel) Attend(ctx context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	if req.Mask != nil {
		if err := req.Mask.Validate(req.Causal); err != nil {
			return nil, err
		}
	}
	attend(ctx, req, req.Mask)
	report := core.Report{Strategy: "attention." + kernelName, Backend: "reference", Threads: 1, Density: 1}
	if req.Mask != nil {
		report.Density = req.Mask.Density(req.Causal)
	}
	if ctx.Err() != nil {
		err := core.AsError(ctx.Err())
		err.Strategy = "attention." + kernelName
		return nil, err
	}
	return &core.AttentionResponse{Report: report, Mask: req.Mask}, nil
}

// attend writes output and lse of the tiles of a mask; nil: of everything.
func attend(ctx context.Context, req *core.AttentionRequest, mask *core.BlockMask) {
	group := req.Query.Dim(1) / req.Key.Dim(1)
	blank(req)
	for s, e := range req.Extents() {
		for h := range req.Query.Dim(1) {
			q := matrix(req.Query, e.Batch, h, e.QueryStart, e.QueryEnd)
			k, v := matrix(req.Key, e.Batch, h/group, e.KeyStart, e.KeyEnd), matrix(req.Value, e.Batch, h/group, e.KeyStart, e.KeyEnd)
			for i := range q {
				if ctx.Err() != nil {
					return
				}
				position := e.Offset + i
				row, lse := attendRow(q[i], k, v, req.Scale, func(j int) bool {
					return sees(req, position, j) && keeps(mask, s, h, position, j)
				})
				if row == nil {
					continue
				}
				for d, x := range row {
					elementsOf(req.Output).set(x, e.Batch, h, e.QueryStart+i, d)
				}
				if req.LSE != nil {
					elementsOf(req.LSE).set(lse, e.Batch, h, e.QueryStart+i)
				}
			}
		}
	}
}

// attendRow is the output of one query and its lse; nil: it sees no key.
func attendRow(q []float64, k, v [][]float64, scale float64, sees func(int) bool) (out []float64, lse float64) {
	scores, most := make([]float64, len(k)), math.Inf(-1)
	for j := range k {
		scores[j] = math.Inf(-1)
		if sees(j) {
			scores[j] = 0
			for d := range q {
				scores[j] += q[d] * k[j][d] * scale
			}
			most = math.Max(most, scores[j])
		}
	}
	if math.IsInf(most, -1) {
		return nil, most
	}
	sum, out := 0.0, make([]float64, len(q))
	for j, score := range scores {
		if math.IsInf(score, -1) {
			continue
		}
		w := math.Exp(score - most)
		sum += w
		for d := range out {
			out[d] += w * v[j][d]
		}
	}
	for d := range out {
		out[d] /= sum
	}
	return out, most + math.Log(sum)
}

// matrix is rows [from, to) of one head.
func matrix(x *tensor.Tensor, batch, head, from, to int) [][]float64 {
	e, rows := elementsOf(x), make([][]float64, to-from)
	for i := range rows {
		rows[i] = make([]float64, x.Dim(3))
		for d := range rows[i] {
			rows[i][d] = e.at(batch, head, from+i, d)
		}
	}
	return rows
}

// blank is what a query gives that sees nothing.
func blank(req *core.AttentionRequest) {
	out := elementsOf(req.Output)
	for b := range req.Query.Dim(0) {
		for h := range req.Query.Dim(1) {
			for i := range req.Query.Dim(2) {
				for d := range req.Query.Dim(3) {
					out.set(0, b, h, i, d)
				}
				if req.LSE != nil {
					elementsOf(req.LSE).set(math.Inf(-1), b, h, i)
				}
			}
		}
	}
}

// sees says whether the query at one position may look at the key at another.
func sees(req *core.AttentionRequest, query, key int) bool {
	if req.Causal && key > query {
		return false
	}
	return req.Window == 0 || int64(query-key) < req.Window
}

func keeps(mask *core.BlockMask, sequence, head, query, key int) bool {
	if mask == nil {
		return true
	}
	row := mask.Row(sequence, head, query/mask.BlockSize-mask.Sequences[sequence].FirstQueryBlock)
	for _, c := range row {
		if int(c) == key/mask.BlockSize {
			return true
		}
	}
	return false
}
