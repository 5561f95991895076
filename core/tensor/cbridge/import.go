// Package cbridge carries tensors across the Arrow C data interface without
// copying them. Structures are named by address, since they belong to another
// language.
package cbridge

// #include "abi.h"
import "C"

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/cdata"

	"github.com/trivium-ml/trivium/core/tensor"
)

// Import views an ArrowArray as a tensor. It takes over what both structures hold,
// also when it fails, but not the memory of the structures themselves. The caller
// releases the tensor, which gives the memory back to its owner.
//
// A list has its entries as the first axis; a plain array has one axis.
func Import(array, schema uintptr) (*tensor.Tensor, error) {
	imported := cdata.ArrayFromPtr(array)
	defer cdata.ReleaseCArrowArray(imported) // nothing is left to release once it was moved
	field, l, err := readSchema(schema)
	if err != nil {
		return nil, err
	}
	if err := checkArray((*C.struct_ArrowArray)(unsafe.Pointer(imported)), field.Type); err != nil {
		return nil, err
	}
	arr, err := cdata.ImportCArrayWithType(imported, field.Type)
	if err != nil {
		return nil, fmt.Errorf("arrow array: %w", err)
	}
	defer arr.Release()
	return l.tensor(arr.Data())
}

// tensor views the data, whose buffer it retains.
func (l layout) tensor(data arrow.ArrayData) (*tensor.Tensor, error) {
	rows, first, values := int64(data.Len()), int64(data.Offset()), data
	if l.entry != nil {
		values = data.Children()[0]
		first = first*int64(data.DataType().(*arrow.FixedSizeListType).Len()) + int64(values.Offset())
	}
	shape, strides := l.view(rows)
	return tensor.New(values.Buffers()[1], first*l.dtype.Size(), l.dtype, shape, strides, tensor.CPU)
}

// readSchema takes the schema over and reads it.
func readSchema(schema uintptr) (arrow.Field, layout, error) {
	described := cdata.SchemaFromPtr(schema)
	if err := checkSchema((*C.struct_ArrowSchema)(unsafe.Pointer(described))); err != nil {
		cdata.ReleaseCArrowSchema(described)
		return arrow.Field{}, layout{}, err
	}
	field, err := cdata.ImportCArrowField(described)
	if err != nil {
		return arrow.Field{}, layout{}, fmt.Errorf("arrow schema: %w", err)
	}
	l, err := readLayout(field)
	return field, l, err
}

// checkSchema refuses what makes cdata v17 panic: it trusts the producer's
// format strings and counts.
func checkSchema(s *C.struct_ArrowSchema) error {
	if s.release == nil || s.format == nil {
		return fmt.Errorf("the arrow schema was released or imported before")
	}
	format := C.GoString(s.format)
	if !strings.HasPrefix(format, "+") {
		return checkElement(format, s)
	}
	length, ok := strings.CutPrefix(format, "+w:")
	if n, err := strconv.ParseInt(length, 10, 32); !ok || err != nil || n < 1 || s.n_children != 1 || s.children == nil || *s.children == nil {
		return fmt.Errorf("arrow schema of format %q with %d children: want a list of numbers of one length", format, s.n_children)
	}
	child := *s.children
	if child.release == nil || child.format == nil {
		return fmt.Errorf("the arrow schema's list has an element that was released")
	}
	return checkElement(C.GoString(child.format), child)
}

// element are the formats of what is not nested, and that cdata reads without
// looking beyond their end.
var element = regexp.MustCompile(`^([nbcCsSiIlLefgzZuU]|v[zu]|td[Dm]|t[tD][smun]|ti[MDn]|ts[smun]:.*)$`)

func checkElement(format string, s *C.struct_ArrowSchema) error {
	if s.n_children != 0 || s.dictionary != nil || !element.MatchString(format) {
		return fmt.Errorf("arrow schema of format %q with %d children: want numbers, or lists of numbers", format, s.n_children)
	}
	return nil
}

// checkArray refuses what cdata v17 would free twice or read out of bounds: it
// trusts the counts, the lengths and the pointers of the producer.
func checkArray(a *C.struct_ArrowArray, t arrow.DataType) error {
	if a.release == nil {
		return fmt.Errorf("the arrow array was released or imported before")
	}
	if a.length < 0 || a.offset < 0 {
		return fmt.Errorf("arrow array of length %d at offset %d", a.length, a.offset)
	}
	if a.null_count > 0 {
		return fmt.Errorf("arrow array with %d nulls: want none", a.null_count)
	}
	if list, ok := t.(*arrow.FixedSizeListType); ok {
		return checkList(a, int64(list.Len()))
	}
	if a.n_children != 0 || a.n_buffers != 2 || a.dictionary != nil {
		return fmt.Errorf("arrow array of %s with %d children and %d buffers: want 0 and 2", t, a.n_children, a.n_buffers)
	}
	if unsafe.Slice(a.buffers, 2)[1] == nil && a.length+a.offset > 0 {
		return fmt.Errorf("arrow array of %d elements without memory", a.length)
	}
	return nil
}

func checkList(a *C.struct_ArrowArray, entries int64) error {
	if a.n_children != 1 || a.n_buffers != 1 {
		return fmt.Errorf("arrow list with %d children and %d buffers: want 1 and 1", a.n_children, a.n_buffers)
	}
	child := *a.children
	if int64(child.length) < (int64(a.length)+int64(a.offset))*entries {
		return fmt.Errorf("arrow list of %d entries of %d with %d elements", a.length, entries, child.length)
	}
	return checkArray(child, arrow.PrimitiveTypes.Uint8)
}
