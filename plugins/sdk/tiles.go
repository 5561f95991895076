package sdk

import (
	"context"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// tileElements is how many elements of each file are in memory at a time.
const tileElements = 1 << 16

// MergeTiles merges float32 tensors without holding a whole one in memory: merge
// writes a tile of the output of a candidate from the same tile of every input,
// oldest first. It borrows the tiles until it returns.
func MergeTiles(ctx context.Context, req *core.MergeRequest, merge func(candidate int, inputs [][]float32, out []float32)) (*core.MergeResponse, error) {
	response := &core.MergeResponse{Backend: "go"}
	for _, t := range req.Tensors {
		for candidate, out := range t.Outputs {
			for from := int64(0); from < out.Extent.Size; from += 4 * tileElements {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				size := min(4*tileElements, out.Extent.Size-from)
				if err := mergeTile(t, out, from, size, func(inputs [][]float32, to []float32) { merge(candidate, inputs, to) }); err != nil {
					return nil, err
				}
			}
		}
		response.Tensors = append(response.Tensors, core.TensorReport{Name: t.Name, Policy: "merged"})
	}
	return response, nil
}

func mergeTile(t core.MergeTensor, out core.MergeOperand, from, size int64, merge func([][]float32, []float32)) error {
	inputs := make([][]float32, len(t.Inputs))
	for i, in := range t.Inputs {
		x, mapping, err := mapTile(in, from, size)
		if err != nil {
			return err
		}
		defer mapping.Close()
		inputs[i] = x
	}
	to, mapping, err := mapTile(out, from, size)
	if err != nil {
		return err
	}
	defer mapping.Close()
	merge(inputs, to)
	return nil
}

// mapTile lends a part of a file as numbers, until the caller closes the mapping.
func mapTile(o core.MergeOperand, from, size int64) ([]float32, *tensor.Mapping, error) {
	if o.Dtype != tensor.Float32 {
		return nil, nil, core.Errorf(core.ErrUnsupported, "%s has dtype %v: want float32", o.Name(), o.Dtype)
	}
	m, err := o.Extent.Map(from, size)
	if err != nil {
		return nil, nil, err
	}
	b := m.Bytes()
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4), m, nil
}
