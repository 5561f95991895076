package flexprefill

import (
	"math"

	"github.com/trivium-ml/trivium/strategies/attention/kernel/mass"
)

// keepQueryAware keeps the tiles with the largest probability, rows softmaxed
// over block means, until the sum over the whole head reaches gamma of it. The
// released code drops the tile that crosses gamma, the paper keeps it.
func (h head) keepQueryAware() error {
	queries, err := h.queries()
	if err != nil {
		return err
	}
	probability := make([]float32, h.QueryBlocks*h.KeyBlocks)
	row64 := make([]float64, h.KeyBlocks)
	similarity := h.call.Similarity(queries, h.keys, h.Visible)
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		for j := range row64 {
			row64[j] = math.Inf(-1)
			if j >= low && j < high {
				row64[j] = float64(similarity.Row(row)[j])
			}
		}
		mass.Softmax(row64)
		for j := low; j < high; j++ {
			probability[row*h.KeyBlocks+j] = float32(row64[j])
		}
	}
	count := h.cover(probability, float64(h.QueryBlocks))
	if h.rule == "paper" {
		count++
	}
	for _, at := range mass.Largest(probability, min(count, len(probability))) {
		h.Keep(at/h.KeyBlocks, at%h.KeyBlocks)
	}
	return nil
}
