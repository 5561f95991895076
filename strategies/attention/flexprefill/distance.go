package flexprefill

import (
	"math"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
	"github.com/trivium-ml/trivium/strategies/internal/dtype"
)

// distance is the Jensen-Shannon distance, natural logarithm, between the true
// mass of the last queries over key blocks and the estimate from block means.
func (h head) distance() float64 {
	blocks := h.Diagonal(h.QueryBlocks-1) + 1 // beyond it nothing is visible
	blocks = min(blocks, h.KeyBlocks)
	low, _ := h.Visible(h.QueryBlocks - 1)
	similarity := h.call.Similarity(h.meanQuery(), h.keys, func(int) (int, int) { return low, blocks }).Score
	estimate := make([]float64, blocks)
	for j := range estimate {
		estimate[j] = math.Inf(-1)
		if j >= low {
			estimate[j] = float64(similarity[j])
		}
	}
	mass.Softmax(estimate)
	truth := mass.Blocks(h.scores.Columns, h.block, blocks)
	return h.jensenShannon(estimate, truth)
}

// jensenShannon counts 0 log 0 as 0. Under the released rule a zero gives NaN
// as it does there, and NaN is not below tau.
func (h head) jensenShannon(p, q []float64) float64 {
	sum := 0.0
	for i := range p {
		m := (p[i] + q[i]) / 2
		if h.rule == "released" && (float32(p[i]) == 0 || float32(q[i]) == 0) {
			return math.NaN()
		}
		sum += (relative(p[i], m) + relative(q[i], m)) / 2
	}
	return math.Sqrt(max(0, sum))
}

func relative(p, m float64) float64 {
	if p == 0 {
		return 0
	}
	return p * math.Log(p/m)
}

// meanQuery is the mean of the rows that were scored.
func (h head) meanQuery() kernel.Means {
	mean, row := make([]float32, h.query.Cols), make([]float32, h.query.Cols)
	first := h.query.Rows - h.scores.Rows
	for r := first; r < h.query.Rows; r++ {
		dtype.Row(row, h.query, r)
		for c, x := range row {
			mean[c] += x
		}
	}
	for c := range mean {
		mean[c] /= float32(h.scores.Rows)
	}
	middle := int64(h.offset + (first+h.query.Rows-1)/2)
	return kernel.Means{Pooled: hardware.Pooled{Blocks: 1, Dim: len(mean), Data: mean}, Position: []int64{middle}}
}
