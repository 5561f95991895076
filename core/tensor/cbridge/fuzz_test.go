package cbridge

import (
	"testing"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/cdata"

	"github.com/trivium-ml/trivium/core/tensor"
)

// FuzzLayout reads what an Arrow field says about its tensor. What passes must
// view no more memory than the field has, and each place of it once.
func FuzzLayout(f *testing.F) {
	f.Add(int32(6), uint8(0), "arrow.fixed_shape_tensor", `{"shape":[2,3]}`)
	f.Add(int32(6), uint8(5), "arrow.fixed_shape_tensor", `{"shape":[2,3],"permutation":[1,0],"trivium:dtype":"bfloat16"}`)
	f.Add(int32(0), uint8(1), "arrow.fixed_shape_tensor", `{"shape":[0,9223372036854775807]}`)
	f.Add(int32(4), uint8(2), "other", `{"shape":[-2,-2]}`)
	f.Add(int32(1), uint8(3), "arrow.fixed_shape_tensor", `null`)
	storages := []arrow.DataType{
		arrow.PrimitiveTypes.Float32, arrow.PrimitiveTypes.Float64, arrow.PrimitiveTypes.Int64, arrow.FixedWidthTypes.Float16,
		arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.BinaryTypes.String,
	}
	f.Fuzz(func(t *testing.T, length int32, storage uint8, name, text string) {
		if length < 1 || length > 1<<16 { // others are refused before
			return
		}
		field := arrow.Field{
			Type:     arrow.FixedSizeListOf(length, storages[int(storage)%len(storages)]),
			Metadata: arrow.NewMetadata([]string{nameKey, metadataKey}, []string{name, text}),
		}
		l, err := readLayout(field)
		if err != nil {
			return
		}
		const rows = 3
		shape, strides := l.view(rows)
		size, err := tensor.Span(l.dtype, shape, strides)
		if err != nil {
			t.Fatalf("length %d, %q: passed, and then %v", length, text, err)
		}
		if size > rows*int64(length)*l.dtype.Size() {
			t.Fatalf("length %d, %q: shape %v strides %v take %d bytes of %d", length, text, shape, strides, size, rows*int64(length)*l.dtype.Size())
		}
		n := int64(1)
		for _, d := range shape {
			n *= d
		}
		if n != rows*int64(length) {
			t.Fatalf("length %d, %q: shape %v has %d elements", length, text, shape, n)
		}
	})
}

// schemaABI is the beginning of an ArrowSchema.
type schemaABI struct {
	format, name, metadata unsafe.Pointer
	flags, children        int64
	child                  **schemaABI
}

// FuzzSchema reads a schema whose format strings anybody may have written: it is
// read or refused, without a panic.
func FuzzSchema(f *testing.F) {
	for _, seed := range [][2]string{
		{"+w:6", "f"}, {"+w:0", "f"}, {"+w:-1", "f"}, {"+w:00", "g"}, {"+w", "f"}, {"+w:x", "f"}, {"+l", "f"}, {"+s", "f"}, {"+ud:0", "f"},
		{"+w:3", "+w:2"}, {"+w:3", "w:7"}, {"f", "f"}, {"w:", "f"}, {"d:1", "f"}, {"tss:UTC", "f"}, {"+r", "f"}, {"+vl", "f"}, {"", ""}, {":", "+"},
	} {
		f.Add(seed[0], seed[1], int64(1))
	}
	f.Fuzz(func(t *testing.T, format, child string, children int64) {
		children &= 1 // other counts are beyond what a reader can see, and the exporter's release believes them
		// Room for formats: the strings that are exported here are written over.
		const room = 1_234_567_890
		list := arrow.FixedSizeListOf(room, arrow.FixedSizeListOf(room, arrow.PrimitiveTypes.Float32))
		var schema cdata.CArrowSchema
		cdata.ExportArrowSchema(arrow.NewSchema([]arrow.Field{{Name: "x", Type: list}}, nil), &schema)
		outer := *(*schemaABI)(unsafe.Pointer(&schema)).child
		inner := *outer.child
		if !overwrite(outer.format, format) || !overwrite(inner.format, child) {
			cdata.ReleaseCArrowSchema(&schema)
			return
		}
		if child != "" && child[0] != '+' {
			inner.children = 0
		}
		before := outer.children
		outer.children = children
		_, _, err := readSchemaOf(outer)
		if err == nil && (format == "" || children == 1 && child == "") {
			t.Fatalf("format %q of %q was read", format, child)
		}
		if err != nil && outer.format != nil {
			outer.children = before
		}
		cdata.ReleaseCArrowSchema(&schema)
	})
}

func readSchemaOf(s *schemaABI) (arrow.Field, layout, error) {
	return readSchema(uintptr(unsafe.Pointer(s)))
}

// overwrite writes a C string over another, if there is room.
func overwrite(at unsafe.Pointer, text string) bool {
	room := unsafe.Slice((*byte)(at), len("+w:1234567890")+1)
	if len(text) >= len(room) {
		return false
	}
	copy(room, text+"\x00")
	return true
}
