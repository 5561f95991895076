package main

import (
	"context"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// Strategy averages checkpoints with weights that fall from the newest on.
type Strategy struct{}

var _ core.Weigher = Strategy{}

// Info implements core.Strategy.
func (Strategy) Info() core.Info {
	return core.Info{
		Name: "plugin-name", Kind: core.Merge, License: "Apache-2.0", Version: "0.1.0",
		Summary: "a mean in which each older checkpoint counts less",
		Parameters: []core.Parameter{
			{Name: "decay", Type: core.Float, Default: 0.5, Min: core.Bound(0), OpenMin: true, Max: core.Bound(1), Doc: "weight of a checkpoint over that of the next newer"},
		},
		Capabilities: core.Capabilities{Dtypes: []string{"float32"}, Deterministic: true},
	}
}

// Weights implements core.Weigher.
func (Strategy) Weights(_ context.Context, req *core.WeightsRequest) ([]float64, error) {
	weights, sum, w := make([]float64, req.Sources), 0.0, 1.0
	for i := req.Sources - 1; i >= 0; i-- {
		weights[i] = w
		sum, w = sum+w, w*req.Params.Float("decay")
	}
	for i := range weights {
		weights[i] /= sum
	}
	return weights, nil
}

// tile is how many elements are in memory at a time.
const tile = 1 << 16

// Merge implements core.MergeStrategy.
func (s Strategy) Merge(ctx context.Context, req *core.MergeRequest) (*core.MergeResponse, error) {
	weights := req.Weights
	if weights == nil {
		own, err := s.Weights(ctx, &core.WeightsRequest{Sources: req.Sources, Steps: req.Steps, Params: req.Params})
		if err != nil {
			return nil, err
		}
		weights = [][]float64{own}
	}
	response := &core.MergeResponse{Backend: "go"}
	for _, t := range req.Tensors {
		for out, operand := range t.Outputs {
			if err := mergeInto(ctx, operand, t.Inputs, weights[min(out, len(weights)-1)]); err != nil {
				return nil, err
			}
		}
		response.Tensors = append(response.Tensors, core.TensorReport{Name: t.Name, Policy: "merged"})
	}
	return response, nil
}

func mergeInto(ctx context.Context, out core.MergeOperand, inputs []core.MergeOperand, weights []float64) error {
	sum := make([]float64, tile)
	for from := int64(0); from < out.Extent.Size; from += 4 * tile {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		size := min(4*tile, out.Extent.Size-from)
		clear(sum)
		for i, in := range inputs {
			if err := mapped(in, from, size, func(x []float32) {
				for j := range x {
					sum[j] += weights[i] * float64(x[j])
				}
			}); err != nil {
				return err
			}
		}
		if err := mapped(out, from, size, func(x []float32) {
			for j := range x {
				x[j] = float32(sum[j])
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// mapped lends a part of a file as numbers.
func mapped(o core.MergeOperand, from, size int64, use func([]float32)) error {
	if o.Dtype != tensor.Float32 {
		return core.Errorf(core.ErrUnsupported, "%s has dtype %v: want float32", o.Name(), o.Dtype)
	}
	m, err := o.Extent.Map(from, size)
	if err != nil {
		return err
	}
	defer m.Close()
	b := m.Bytes()
	use(unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4))
	return nil
}
