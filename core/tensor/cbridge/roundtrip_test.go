package cbridge

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/cdata"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core/tensor"
)

// mapped is memory outside of Go that counts how often it is given back.
type mapped struct {
	bytes []byte
	freed atomic.Int64
}

func (m *mapped) Allocate(int) []byte           { panic("not used") }
func (m *mapped) Reallocate(int, []byte) []byte { panic("not used") }
func (m *mapped) Free([]byte)                   { m.freed.Add(1) }

func newMapped(t testing.TB, size int64) *mapped {
	bytes, err := unix.Mmap(-1, 0, int(max(size, 1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(bytes) })
	return &mapped{bytes: bytes}
}

// tensorOver returns a tensor that is the only holder of the memory.
func (m *mapped) tensorOver(t testing.TB, dtype tensor.Dtype, shape ...int64) *tensor.Tensor {
	buffer := memory.NewBufferWithAllocator(m.bytes, m)
	defer buffer.Release()
	x, err := tensor.New(buffer, 0, dtype, shape, nil, tensor.CPU)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// structures are the two that a consumer provides, zeroed and outside of Go, whose
// stacks move.
type structures struct {
	array  cdata.CArrowArray
	schema cdata.CArrowSchema
}

func newStructures(t testing.TB) *structures {
	m := newMapped(t, int64(unsafe.Sizeof(structures{})))
	return (*structures)(unsafe.Pointer(&m.bytes[0]))
}

func (s *structures) addresses() (array, schema uintptr) {
	return uintptr(unsafe.Pointer(&s.array)), uintptr(unsafe.Pointer(&s.schema))
}

func export(x *tensor.Tensor, s *structures) error {
	array, schema := s.addresses()
	return Export(x, array, schema)
}

func TestRoundTripKeepsTensorAndMemory(t *testing.T) {
	dtypes := []tensor.Dtype{tensor.Float32, tensor.BFloat16, tensor.Float16, tensor.Float64, tensor.Int64, tensor.Int32,
		tensor.Int16, tensor.Int8, tensor.Uint64, tensor.Uint32, tensor.Uint16, tensor.Uint8, tensor.Bool,
		tensor.Float8E4M3, tensor.Float8E5M2}
	rapid.Check(t, func(r *rapid.T) {
		dtype := rapid.SampledFrom(dtypes).Draw(r, "dtype")
		shape := rapid.SliceOfN(rapid.Int64Range(1, 5), 1, 4).Draw(r, "shape")
		shape[0] = rapid.Int64Range(0, 5).Draw(r, "rows")
		span, err := tensor.Span(dtype, shape, tensor.RowMajor(shape))
		if err != nil {
			r.Fatal(err)
		}
		m := newMapped(t, span)
		x := m.tensorOver(t, dtype, shape...)
		s := newStructures(t)
		if err := export(x, s); err != nil {
			r.Fatal(err)
		}
		x.Release()
		if m.freed.Load() != 0 {
			r.Fatal("the memory was given back while it was exported")
		}
		y, err := Import(s.addresses())
		if err != nil {
			r.Fatal(err)
		}
		if y.Dtype() != dtype || !slices.Equal(y.Shape(), shape) || !y.Contiguous() {
			r.Fatalf("got %v, want %v%v", y, dtype, shape)
		}
		if span > 0 && y.Pointer() != unsafe.Pointer(&m.bytes[0]) {
			r.Fatal("the tensor was copied")
		}
		y.Release()
		if n := m.freed.Load(); n != 1 {
			r.Fatalf("the memory was given back %d times, want once", n)
		}
	})
}

func TestConsumerReleasesWithoutImporting(t *testing.T) {
	m := newMapped(t, 24)
	x := m.tensorOver(t, tensor.Float32, 2, 3)
	s := newStructures(t)
	if err := export(x, s); err != nil {
		t.Fatal(err)
	}
	x.Release()
	cdata.ReleaseCArrowSchema(&s.schema)
	cdata.ReleaseCArrowArray(&s.array)
	cdata.ReleaseCArrowArray(&s.array)
	if n := m.freed.Load(); n != 1 {
		t.Fatalf("the memory was given back %d times, want once", n)
	}
}

func TestExportRefuses(t *testing.T) {
	cases := []struct {
		name           string
		shape, strides []int64
	}{
		{"no axis", []int64{}, []int64{}},
		{"strided", []int64{2, 3}, []int64{6, 1}},
		{"empty entries", []int64{2, 0}, nil},
		{"transposed", []int64{2, 3}, []int64{1, 2}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := newMapped(t, 64)
			x, err := tensor.Borrow(unsafe.Pointer(&m.bytes[0]), tensor.Float32, c.shape, c.strides, tensor.CPU)
			if err != nil {
				t.Fatal(err)
			}
			s := newStructures(t)
			if err := export(x, s); err == nil {
				t.Fatal("exported")
			}
		})
	}
}

// exportList writes uint16 lists of the given length with metadata, as another producer would.
func exportList(t *testing.T, m *mapped, rows, entries, first int64, metadata map[string]string) *structures {
	buffer := memory.NewBufferWithAllocator(m.bytes, m)
	defer buffer.Release()
	values := array.NewData(arrow.PrimitiveTypes.Uint16, len(m.bytes)/2, []*memory.Buffer{nil, buffer}, nil, 0, 0)
	defer values.Release()
	list := arrow.FixedSizeListOfNonNullable(int32(entries), arrow.PrimitiveTypes.Uint16)
	data := array.NewData(list, int(rows), []*memory.Buffer{nil}, []arrow.ArrayData{values}, 0, int(first))
	defer data.Release()
	arr := array.NewFixedSizeListData(data)
	defer arr.Release()
	s := newStructures(t)
	cdata.ExportArrowArray(arr, &s.array, nil)
	keep := []string{}
	text := []string{}
	for k, v := range metadata {
		keep, text = append(keep, k), append(text, v)
	}
	exportField(arrow.Field{Type: list, Metadata: arrow.NewMetadata(keep, text)}, &s.schema)
	return s
}

func TestImportReadsMetadata(t *testing.T) {
	extension := func(metadata string) map[string]string {
		return map[string]string{nameKey: extensionName, metadataKey: metadata}
	}
	cases := []struct {
		name           string
		rows, first    int64
		metadata       map[string]string
		dtype          tensor.Dtype
		shape, strides []int64
		fault          string
	}{
		{name: "plain list", rows: 2, dtype: tensor.Uint16, shape: []int64{2, 6}, strides: []int64{6, 1}},
		{name: "offset", rows: 2, first: 1, dtype: tensor.Uint16, shape: []int64{2, 6}, strides: []int64{6, 1}},
		{name: "shape", rows: 2, metadata: extension(`{"shape":[2,3]}`), dtype: tensor.Uint16, shape: []int64{2, 2, 3}, strides: []int64{6, 3, 1}},
		{name: "permutation", rows: 2, metadata: extension(`{"shape":[1,2,3],"permutation":[2,0,1]}`), dtype: tensor.Uint16,
			shape: []int64{2, 3, 1, 2}, strides: []int64{6, 1, 6, 3}},
		{name: "bfloat16", rows: 1, metadata: extension(`{"shape":[6],"trivium:dtype":"bfloat16"}`), dtype: tensor.BFloat16,
			shape: []int64{1, 6}, strides: []int64{6, 1}},
		{name: "names of axes are skipped", rows: 1, metadata: extension(`{"shape":[6],"dim_names":["x"]}`), dtype: tensor.Uint16,
			shape: []int64{1, 6}, strides: []int64{6, 1}},
		{name: "dtype of another size", rows: 1, metadata: extension(`{"shape":[6],"trivium:dtype":"float32"}`), fault: "equal size"},
		{name: "wrong shape", rows: 1, metadata: extension(`{"shape":[5]}`), fault: "shape [5]"},
		{name: "huge shape", rows: 1, metadata: extension(`{"shape":[4611686018427387904,4]}`), fault: "shape"},
		{name: "negative shape", rows: 1, metadata: extension(`{"shape":[-2,-3]}`), fault: "shape"},
		{name: "axis twice", rows: 1, metadata: extension(`{"shape":[2,3],"permutation":[1,1]}`), fault: "permutation"},
		{name: "axis missing", rows: 1, metadata: extension(`{"shape":[2,3],"permutation":[0]}`), fault: "permutation"},
		{name: "no JSON", rows: 1, metadata: extension(`{`), fault: "metadata"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := newMapped(t, 36)
			x, err := Import(exportList(t, m, c.rows, 6, c.first, c.metadata).addresses())
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) {
					t.Fatalf("got %v, want an error with %q", err, c.fault)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if x.Dtype() != c.dtype || !slices.Equal(x.Shape(), c.shape) || !slices.Equal(x.Strides(), c.strides) {
					t.Fatalf("got %v with strides %v, want %v%v with strides %v", x, x.Strides(), c.dtype, c.shape, c.strides)
				}
				if x.Pointer() != unsafe.Pointer(&m.bytes[c.first*6*2]) {
					t.Fatal("the tensor starts elsewhere")
				}
				x.Release()
			}
			if n := m.freed.Load(); n != 1 {
				t.Fatalf("the memory was given back %d times, want once", n)
			}
		})
	}
}

// rawArray is the head of struct ArrowArray.
type rawArray struct{ length, nulls, offset, buffers, children int64 }

// A producer's mistake is an error and gives the memory back; cdata alone would
// free it twice or read past its end.
func TestImportRefusesBrokenArrays(t *testing.T) {
	cases := []struct {
		name   string
		spoil  func(*rawArray)
		fault  string
		leaked bool // the producer of this test needs the count to find its child
	}{
		{"no children", func(a *rawArray) { a.children = 0 }, "children", true},
		{"two buffers", func(a *rawArray) { a.buffers = 2 }, "buffers", false},
		{"negative length", func(a *rawArray) { a.length = -1 }, "length", false},
		{"longer than its child", func(a *rawArray) { a.length = 4 }, "elements", false},
		{"nulls", func(a *rawArray) { a.nulls = 1 }, "nulls", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := newMapped(t, 36)
			s := exportList(t, m, 2, 6, 0, nil)
			c.spoil((*rawArray)(unsafe.Pointer(&s.array)))
			if _, err := Import(s.addresses()); err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Fatalf("got %v, want an error with %q", err, c.fault)
			}
			if n := m.freed.Load(); (n == 0) != c.leaked || n > 1 {
				t.Fatalf("the memory was given back %d times, want once", n)
			}
		})
	}
}

func TestImportTwiceIsAnError(t *testing.T) {
	m := newMapped(t, 12)
	x := m.tensorOver(t, tensor.Float32, 3)
	s := newStructures(t)
	if err := export(x, s); err != nil {
		t.Fatal(err)
	}
	x.Release()
	y, err := Import(s.addresses())
	if err != nil {
		t.Fatal(err)
	}
	defer y.Release()
	if _, err := Import(s.addresses()); err == nil {
		t.Fatal("imported twice")
	}
}
