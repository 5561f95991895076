package cbridge

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/apache/arrow/go/v17/arrow"

	"github.com/trivium-ml/trivium/core/tensor"
)

const (
	extensionName = "arrow.fixed_shape_tensor"
	nameKey       = "ARROW:extension:name"
	metadataKey   = "ARROW:extension:metadata"
)

// fixedShape is the metadata of arrow.fixed_shape_tensor: the shape of one list
// entry, and the order in which its axes lie in memory. Arrow has no bfloat16, so
// the storage is uint16 and Dtype, which other readers skip, names what it means.
type fixedShape struct {
	Shape       []int64 `json:"shape"`
	Permutation []int64 `json:"permutation,omitempty"`
	Dtype       string  `json:"trivium:dtype,omitempty"`
}

// layout is what an Arrow field says about the tensor stored in it.
type layout struct {
	dtype       tensor.Dtype
	entry       []int64 // shape of one list entry as it lies in memory, nil for a plain array
	permutation []int64 // logical axis i of an entry is physical axis permutation[i]
}

var dtypeOfArrow = map[arrow.Type]tensor.Dtype{
	arrow.FLOAT32: tensor.Float32, arrow.FLOAT16: tensor.Float16, arrow.FLOAT64: tensor.Float64,
	arrow.INT64: tensor.Int64, arrow.INT32: tensor.Int32, arrow.INT16: tensor.Int16, arrow.INT8: tensor.Int8,
	arrow.UINT64: tensor.Uint64, arrow.UINT32: tensor.Uint32, arrow.UINT16: tensor.Uint16, arrow.UINT8: tensor.Uint8,
}

// arrowOfDtype is the storage type: the inverse of dtypeOfArrow, and unsigned
// integers for what Arrow lacks.
func arrowOfDtype(d tensor.Dtype) (arrow.DataType, error) {
	switch d {
	case tensor.Float32:
		return arrow.PrimitiveTypes.Float32, nil
	case tensor.Float16:
		return arrow.FixedWidthTypes.Float16, nil
	case tensor.Float64:
		return arrow.PrimitiveTypes.Float64, nil
	case tensor.Int64:
		return arrow.PrimitiveTypes.Int64, nil
	case tensor.Int32:
		return arrow.PrimitiveTypes.Int32, nil
	case tensor.Int16:
		return arrow.PrimitiveTypes.Int16, nil
	case tensor.Int8:
		return arrow.PrimitiveTypes.Int8, nil
	case tensor.Uint64:
		return arrow.PrimitiveTypes.Uint64, nil
	case tensor.Uint32:
		return arrow.PrimitiveTypes.Uint32, nil
	case tensor.Uint16, tensor.BFloat16:
		return arrow.PrimitiveTypes.Uint16, nil
	case tensor.Uint8, tensor.Bool, tensor.Float8E4M3, tensor.Float8E5M2:
		return arrow.PrimitiveTypes.Uint8, nil
	}
	return nil, fmt.Errorf("%v: Arrow has no storage for it", d)
}

// readLayout understands a plain array of numbers, a fixed_size_list of numbers,
// and arrow.fixed_shape_tensor, which is such a list with metadata.
func readLayout(f arrow.Field) (layout, error) {
	list, ok := f.Type.(*arrow.FixedSizeListType)
	if !ok {
		dtype, err := readDtype(f.Type, "")
		return layout{dtype: dtype}, err
	}
	meta := fixedShape{Shape: []int64{int64(list.Len())}}
	if name, ok := f.Metadata.GetValue(nameKey); ok && name == extensionName {
		text, _ := f.Metadata.GetValue(metadataKey)
		meta = fixedShape{}
		if err := json.Unmarshal([]byte(text), &meta); err != nil {
			return layout{}, fmt.Errorf("%s metadata %q: %w", extensionName, text, err)
		}
	}
	if err := meta.check(int64(list.Len())); err != nil {
		return layout{}, err
	}
	dtype, err := readDtype(list.Elem(), meta.Dtype)
	return layout{dtype: dtype, entry: meta.Shape, permutation: meta.Permutation}, err
}

func readDtype(storage arrow.DataType, logical string) (tensor.Dtype, error) {
	stored, ok := dtypeOfArrow[storage.ID()]
	if !ok {
		return tensor.Invalid, fmt.Errorf("an array of %s: want numbers, or arrow.fixed_shape_tensor of numbers", storage)
	}
	if logical == "" {
		return stored, nil
	}
	dtype, err := tensor.ParseDtype(logical)
	if err != nil {
		return tensor.Invalid, err
	}
	if dtype.Size() != stored.Size() {
		return tensor.Invalid, fmt.Errorf("%v stored as %v: want elements of equal size", dtype, stored)
	}
	return dtype, nil
}

// check compares the metadata with the length of a list entry.
func (m fixedShape) check(entries int64) error {
	product := int64(1)
	for _, n := range m.Shape {
		if n < 0 || n > entries {
			return fmt.Errorf("shape %v of an entry of %d elements", m.Shape, entries)
		}
		product *= n
		if product > entries {
			return fmt.Errorf("shape %v of an entry of %d elements", m.Shape, entries)
		}
	}
	if product != entries {
		return fmt.Errorf("shape %v of an entry of %d elements", m.Shape, entries)
	}
	if m.Permutation == nil {
		return nil
	}
	sorted := slices.Sorted(slices.Values(m.Permutation))
	if len(sorted) != len(m.Shape) {
		return fmt.Errorf("permutation %v of %d axes", m.Permutation, len(m.Shape))
	}
	for i, axis := range sorted {
		if axis != int64(i) {
			return fmt.Errorf("permutation %v: want each axis below %d once", m.Permutation, len(m.Shape))
		}
	}
	return nil
}

// shape and strides, in elements, of rows list entries.
func (l layout) view(rows int64) (shape, strides []int64) {
	physical := append([]int64{rows}, l.entry...)
	steps := tensor.RowMajor(physical)
	if l.permutation == nil {
		return physical, steps
	}
	shape, strides = []int64{rows}, []int64{steps[0]}
	for _, axis := range l.permutation {
		shape = append(shape, physical[1+axis])
		strides = append(strides, steps[1+axis])
	}
	return shape, strides
}
