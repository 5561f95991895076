package cbridge

/*
#include "abi.h"

// move_child gives the first child of from to the empty structure to, and releases the rest.
static void move_child(struct ArrowSchema* from, struct ArrowSchema* to) {
  *to = *from->children[0];
  from->children[0]->release = 0;
  from->release(from);
}
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"math"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/cdata"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/trivium-ml/trivium/core/tensor"
)

// Export describes a dense row-major tensor with one or more axes as an
// arrow.fixed_shape_tensor in two structures, which must be zero. It retains the
// tensor until the consumer calls the array's release, from any thread. The
// tensor's memory must not move. A consumer that knows what it gets passes 0 for
// the schema.
func Export(t *tensor.Tensor, array, schema uintptr) error {
	if t.Rank() == 0 || !t.Contiguous() || t.Device() != tensor.CPU {
		return fmt.Errorf("export %v with strides %v: want a dense row-major tensor with an axis, on the cpu", t, t.Strides())
	}
	if n := entry(t); n < 1 || n > math.MaxInt32 {
		return fmt.Errorf("export %v: %d elements for each position of the first axis: an arrow list has 1 to %d", t, n, math.MaxInt32)
	}
	storage, err := arrowOfDtype(t.Dtype())
	if err != nil {
		return err
	}
	if schema != 0 {
		if err := exportSchema(t, storage, schema); err != nil {
			return err
		}
	}
	exportArray(t, storage, array)
	return nil
}

func exportSchema(t *tensor.Tensor, storage arrow.DataType, address uintptr) error {
	meta := fixedShape{Shape: t.Shape()[1:]}
	if dtypeOfArrow[storage.ID()] != t.Dtype() {
		meta.Dtype = t.Dtype().String()
	}
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	field := arrow.Field{
		Type:     listOf(t, storage),
		Metadata: arrow.NewMetadata([]string{nameKey, metadataKey}, []string{extensionName, string(text)}),
	}
	exportField(field, cdata.SchemaFromPtr(address))
	return nil
}

// exportField goes through a schema of one field, because cdata v17 exports no
// field with metadata by itself.
func exportField(field arrow.Field, out *cdata.CArrowSchema) {
	var parent C.struct_ArrowSchema
	cdata.ExportArrowSchema(arrow.NewSchema([]arrow.Field{field}, nil), (*cdata.CArrowSchema)(unsafe.Pointer(&parent)))
	C.move_child(&parent, (*C.struct_ArrowSchema)(unsafe.Pointer(out)))
}

func exportArray(t *tensor.Tensor, storage arrow.DataType, address uintptr) {
	bytes := memory.SliceBuffer(t.Buffer(), offset(t), int(t.Span()))
	defer bytes.Release()
	values := array.NewData(storage, int(t.Len()), []*memory.Buffer{nil, bytes}, nil, 0, 0)
	defer values.Release()
	data := array.NewData(listOf(t, storage), t.Dim(0), []*memory.Buffer{nil}, []arrow.ArrayData{values}, 0, 0)
	defer data.Release()
	list := array.NewFixedSizeListData(data)
	defer list.Release()
	cdata.ExportArrowArray(list, cdata.ArrayFromPtr(address), nil)
}

// offset is where in its buffer the tensor starts.
func offset(t *tensor.Tensor) int {
	if t.Span() == 0 {
		return 0
	}
	return int(uintptr(t.Pointer()) - uintptr(unsafe.Pointer(unsafe.SliceData(t.Buffer().Bytes()))))
}

// listOf is the storage of the extension: one list entry for each position of the first axis.
func listOf(t *tensor.Tensor, storage arrow.DataType) arrow.DataType {
	return arrow.FixedSizeListOfNonNullable(int32(entry(t)), storage)
}

// entry is the number of elements of one list entry.
func entry(t *tensor.Tensor) int64 {
	n := int64(1)
	for _, d := range t.Shape()[1:] {
		n *= d
	}
	return n
}
