package wire

import (
	"math"
	"strings"
	"testing"
	"unsafe"

	"google.golang.org/protobuf/proto"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

const arenaSize = 1 << 16

// aligned is zeroed memory, 8-byte aligned.
func aligned(size int) []byte {
	words := make([]uint64, (size+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size)
}

// good is a message that decodes: two heads of 40 rows in segment 1, a mask in
// segment 2.
func good() (*pb.AttentionRequest, arena) {
	ref := func(offset int64, shape ...int64) *pb.TensorRef {
		return &pb.TensorRef{
			SegmentId: 1, Generation: 1, Offset: offset, Dtype: pb.Dtype_DTYPE_FLOAT32, Shape: shape, Strides: tensor.RowMajor(shape), Device: "cpu",
		}
	}
	memory := arena{1: aligned(arenaSize), 2: aligned(arenaSize)}
	m := &pb.AttentionRequest{
		Query: ref(0, 1, 2, 40, 8), Key: ref(4096, 1, 1, 40, 8), Value: ref(8192, 1, 1, 40, 8),
		Output: ref(16384, 1, 2, 40, 8), Lse: ref(32768, 1, 2, 40), Causal: true, Scale: 1, Layer: -1,
	}
	mask := core.DenseMask(16, 2, []core.BlockExtent{{QueryBlocks: 3, KeyBlocks: 3}}, true)
	m.Mask, _ = EncodeMask(mask, memory[2])
	m.Mask.Memory = &pb.MemoryRef{SegmentId: 2, Generation: 1, Size: arenaSize}
	return m, memory
}

func TestHostileAttention(t *testing.T) {
	m, memory := good()
	if _, err := DecodeAttention(m, memory); err != nil {
		t.Fatalf("the message that the others are made of: %v", err)
	}
	for _, test := range []struct {
		name   string
		spoil  func(*pb.AttentionRequest, arena)
		expect string // in the message of the error
	}{
		{"no query", func(m *pb.AttentionRequest, _ arena) { m.Query = nil }, "query is absent"},
		{"segment not announced", func(m *pb.AttentionRequest, _ arena) { m.Key.SegmentId = 9 }, "key"},
		{"generation", func(m *pb.AttentionRequest, _ arena) { m.Key.Generation = 2 }, "key"},
		{"offset below zero", func(m *pb.AttentionRequest, _ arena) { m.Query.Offset = -4 }, "query"},
		{"offset beyond the end", func(m *pb.AttentionRequest, _ arena) { m.Query.Offset = arenaSize - 4 }, "query"},
		{"offset that overflows", func(m *pb.AttentionRequest, _ arena) { m.Query.Offset = math.MaxInt64 - 3 }, "query"},
		{"offset in an element", func(m *pb.AttentionRequest, _ arena) { m.Query.Offset = 2 }, "multiple of 4"},
		{"stride below zero", func(m *pb.AttentionRequest, _ arena) { m.Query.Strides[0] = -1 }, "negative"},
		{"strides that overflow", func(m *pb.AttentionRequest, _ arena) { m.Query.Strides[2] = math.MaxInt64 }, "overflows"},
		{"fewer strides than axes", func(m *pb.AttentionRequest, _ arena) { m.Query.Strides = m.Query.Strides[:3] }, "strides"},
		{"extent below zero", func(m *pb.AttentionRequest, _ arena) { m.Query.Shape[0] = -1 }, "negative"},
		{"empty", func(m *pb.AttentionRequest, _ arena) { m.Query.Shape[2] = 0 }, "q_len is 0"},
		{"shape that overflows", func(m *pb.AttentionRequest, _ arena) {
			m.Query.Shape, m.Query.Strides = []int64{math.MaxInt64, math.MaxInt64, 1, 1}, []int64{0, 0, 0, 0}
		}, "overflows"},
		{"endless broadcast", func(m *pb.AttentionRequest, _ arena) { m.Query.Shape[0], m.Query.Strides[0] = 1<<40, 0 }, "repeats"},
		{"output that overlaps itself", func(m *pb.AttentionRequest, _ arena) { m.Output.Strides[2] = 0 }, "overlap"},
		{"five axes", func(m *pb.AttentionRequest, _ arena) {
			m.Query.Shape, m.Query.Strides = []int64{1, 1, 2, 40, 8}, []int64{1, 1, 320, 8, 1}
		}, "4 axes"},
		{"no axes", func(m *pb.AttentionRequest, _ arena) { m.Query.Shape, m.Query.Strides = nil, nil }, "4 axes"},
		{"a thousand axes", func(m *pb.AttentionRequest, _ arena) {
			m.Query.Shape, m.Query.Strides = make([]int64, 1000), make([]int64, 1000)
		}, "axes"},
		{"dtype unspecified", func(m *pb.AttentionRequest, _ arena) { m.Query.Dtype = 0 }, "dtype 0"},
		{"dtype unknown", func(m *pb.AttentionRequest, _ arena) { m.Query.Dtype = 200 }, "dtype 200"},
		{"dtype 257, 1 as a byte", func(m *pb.AttentionRequest, _ arena) { m.Query.Dtype = 257 }, "dtype 257"},
		{"dtype below zero", func(m *pb.AttentionRequest, _ arena) { m.Query.Dtype = -255 }, "dtype -255"},
		{"device", func(m *pb.AttentionRequest, _ arena) { m.Query.Device = "cuda:0" }, "cuda:0"},
		{"heads that do not divide", func(m *pb.AttentionRequest, _ arena) { m.Key.Shape[1], m.Value.Shape[1] = 3, 3 }, "query heads"},
		{"offsets for other batches", func(m *pb.AttentionRequest, _ arena) { m.QueryOffset = []int64{1, 2} }, "q_offset"},
		{"key_end beyond the keys", func(m *pb.AttentionRequest, _ arena) { m.KeyEnd = []int64{41} }, "k_end"},
		{"key_start below zero", func(m *pb.AttentionRequest, _ arena) { m.KeyStart = []int64{-1} }, "k_start"},
		{"cu_seqlens that fall", func(m *pb.AttentionRequest, _ arena) { m.CuSeqlens = []int64{0, 30, 20, 40} }, "cu_seqlens"},
		{"scale is not a number", func(m *pb.AttentionRequest, _ arena) { m.Scale = math.NaN() }, "scale"},
		{"precision unknown", func(m *pb.AttentionRequest, _ arena) { m.Precision = "medium" }, "precision"},
		{"window below zero", func(m *pb.AttentionRequest, _ arena) { m.Window = -1 }, "window"},
		{"sinks for other heads", func(m *pb.AttentionRequest, _ arena) { m.Sinks = []float32{1} }, "sinks"},
		{"layer", func(m *pb.AttentionRequest, _ arena) { m.Layer = -2 }, "layer"},
		{"threads", func(m *pb.AttentionRequest, _ arena) { m.Threads = -1 }, "threads"},
		{"threads beyond any machine", func(m *pb.AttentionRequest, _ arena) { m.Threads = math.MaxInt64 }, "threads"},
		{"probe rows", func(m *pb.AttentionRequest, _ arena) { m.ProbeRows = -1 }, "probe_rows"},
		{"unknown bound", func(m *pb.AttentionRequest, _ arena) { m.Bound = "sure" }, "bound"},
		{"delta without a proven bound", func(m *pb.AttentionRequest, _ arena) { m.Delta = 0.1 }, "delta"},
		{"delta is not a number", func(m *pb.AttentionRequest, _ arena) { m.Bound, m.Delta = "proven", math.NaN() }, "delta"},
		{"plan without bands", func(m *pb.AttentionRequest, _ arena) { m.Position = &pb.PositionPlan{} }, "band"},
		{"plan without rules", func(m *pb.AttentionRequest, _ arena) { m.Position = &pb.PositionPlan{Bands: []*pb.Band{{}}} }, "rule"},
		{"mask nowhere", func(m *pb.AttentionRequest, _ arena) { m.Mask.Memory = nil }, "block mask"},
		{"mask beyond the end", func(m *pb.AttentionRequest, _ arena) { m.Mask.Memory.Size++ }, "block mask"},
		{"mask not aligned", func(m *pb.AttentionRequest, _ arena) { m.Mask.Memory.Offset, m.Mask.Memory.Size = 4, 4096 }, "aligned"},
		{"mask columns below zero", func(m *pb.AttentionRequest, _ arena) { m.Mask.Columns = -1 }, "columns"},
		{"mask columns beyond its memory", func(m *pb.AttentionRequest, _ arena) { m.Mask.Columns = math.MaxInt64 }, "columns"},
		{"mask with too few columns", func(m *pb.AttentionRequest, _ arena) { m.Mask.Columns-- }, "block mask"},
		{"mask of no heads", func(m *pb.AttentionRequest, _ arena) { m.Mask.Heads = 0 }, "block mask"},
		{"mask of heads below zero", func(m *pb.AttentionRequest, _ arena) { m.Mask.Heads = math.MinInt32 }, "block mask"},
		{"mask of other heads", func(m *pb.AttentionRequest, _ arena) { m.Mask.Heads = 1; m.Mask.Sequences[0].QueryBlocks = 6 }, "block mask"},
		{"mask block size", func(m *pb.AttentionRequest, _ arena) { m.Mask.BlockSize = 0 }, "block_size"},
		{"mask of more rows than memory", func(m *pb.AttentionRequest, _ arena) { m.Mask.Sequences[0].QueryBlocks = 1 << 30 }, "rows"},
		{"mask extent below zero", func(m *pb.AttentionRequest, _ arena) { m.Mask.Sequences[0].QueryBlocks = -1 }, "query_blocks"},
		{"mask of another grid", func(m *pb.AttentionRequest, _ arena) { m.Mask.Sequences[0].KeyBlocks = 4 }, "grid"},
		{"mask row pointers that fall", func(_ *pb.AttentionRequest, a arena) { row(a, 1, 100) }, "row pointers"},
		{"mask row pointers below zero", func(_ *pb.AttentionRequest, a arena) { row(a, 1, -1) }, "row pointers"},
		{"mask row pointers beyond the end", func(_ *pb.AttentionRequest, a arena) { row(a, 6, math.MaxInt64) }, "row pointers"},
		{"mask column above the diagonal", func(_ *pb.AttentionRequest, a arena) { a[2][7*8] = 1 }, "rising"},
		{"mask column below zero", func(_ *pb.AttentionRequest, a arena) { a[2][7*8+3] = 0xff }, "rising"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, memory := good()
			test.spoil(m, memory)
			_, err := DecodeAttention(m, memory)
			refused(t, err, test.expect)
		})
	}
}

func row(a arena, i int, value int64) {
	*(*int64)(unsafe.Pointer(&a[2][8*i])) = value
}

func refused(t *testing.T, err error, expect string) {
	t.Helper()
	if err == nil {
		t.Fatal("it passed")
	}
	typed := core.AsError(err)
	if typed.Kind != core.ErrInvalidArgument && typed.Kind != core.ErrDeviceUnavailable || !strings.Contains(typed.Message, expect) {
		t.Errorf("got %s: %v, want an error about %q", typed.Kind, err, expect)
	}
}

// part puts an input into parts, of which this is one.
func part(p *pb.FilePart) func(*pb.MergeRequest) {
	return func(m *pb.MergeRequest) { m.Tensors[0].Inputs[0].Parts = []*pb.FilePart{p} }
}

func TestHostileMerge(t *testing.T) {
	make := func() *pb.MergeRequest {
		ref := func(writable bool) *pb.FileRef {
			return &pb.FileRef{FileId: 1, Offset: 16, Size: 24, Dtype: pb.Dtype_DTYPE_FLOAT32, Writable: writable}
		}
		return &pb.MergeRequest{Sources: 2, Weights: []*pb.DoubleList{{Values: []float64{1, 2}}}, Tensors: []*pb.MergeTensor{{
			Name: "w", Shape: []int64{2, 3}, Inputs: []*pb.FileRef{ref(false), ref(false)}, Base: ref(false), Outputs: []*pb.FileRef{ref(true)},
		}}}
	}
	if _, err := DecodeMerge(make(), arena{}); err != nil {
		t.Fatalf("the message that the others are made of: %v", err)
	}
	for _, test := range []struct {
		name   string
		spoil  func(*pb.MergeRequest)
		expect string
	}{
		{"no sources", func(m *pb.MergeRequest) { m.Sources = 0 }, "sources"},
		{"sources below zero", func(m *pb.MergeRequest) { m.Sources = math.MinInt64 }, "sources"},
		{"more sources than inputs", func(m *pb.MergeRequest) { m.Sources = 3; m.Weights = nil }, "inputs"},
		{"no outputs", func(m *pb.MergeRequest) { m.Tensors[0].Outputs = nil }, "outputs"},
		{"no file", func(m *pb.MergeRequest) { m.Tensors[0].Inputs[0] = nil }, "dtype"},
		{"file not announced", func(m *pb.MergeRequest) { m.Tensors[0].Inputs[0].FileId = 2 }, "outside"},
		{"offset below zero", func(m *pb.MergeRequest) { m.Tensors[0].Base.Offset = -1 }, "outside"},
		{"size of another shape", func(m *pb.MergeRequest) { m.Tensors[0].Shape[0] = 3 }, "want 36"},
		{"shape that overflows", func(m *pb.MergeRequest) { m.Tensors[0].Shape = []int64{math.MaxInt64, 4} }, "overflows"},
		{"shape below zero", func(m *pb.MergeRequest) { m.Tensors[0].Shape = []int64{-2, -3} }, "overflows"},
		{"output to read", func(m *pb.MergeRequest) { m.Tensors[0].Outputs[0].Writable = false }, "writable"},
		{"input to write", func(m *pb.MergeRequest) { m.Tensors[0].Inputs[0].Writable = true }, "writable"},
		{"weights for other outputs", func(m *pb.MergeRequest) { m.Weights = append(m.Weights, m.Weights[0]) }, "rows of weights"},
		{"weights for other sources", func(m *pb.MergeRequest) { m.Weights[0].Values = []float64{1} }, "weights"},
		{"weight is not a number", func(m *pb.MergeRequest) { m.Weights[0].Values[0] = math.NaN() }, "weight"},
		{"steps for other sources", func(m *pb.MergeRequest) { m.Steps = []float64{1} }, "steps"},
		{"threads", func(m *pb.MergeRequest) { m.Threads = -1 }, "threads"},
		{"part of other axes", part(&pb.FilePart{FileId: 1, At: []int64{0}, Shape: []int64{2}}), "axes"},
		{"part below zero", part(&pb.FilePart{FileId: 1, At: []int64{-1, 0}, Shape: []int64{1, 3}}), "outside"},
		{"part past the end", part(&pb.FilePart{FileId: 1, At: []int64{math.MaxInt64, 0}, Shape: []int64{1, 3}}), "outside"},
		{"part larger than the array", part(&pb.FilePart{FileId: 1, At: []int64{0, 0}, Shape: []int64{2, 4}}), "outside"},
		{"part without elements", part(&pb.FilePart{FileId: 1, At: []int64{0, 0}, Shape: []int64{0, 3}}), "outside"},
		{"part of a file not announced", part(&pb.FilePart{FileId: 2, At: []int64{0, 0}, Shape: []int64{2, 3}}), "outside"},
		{"part before its file", part(&pb.FilePart{FileId: 1, Offset: -1, At: []int64{0, 0}, Shape: []int64{2, 3}}), "outside"},
		{"output in parts", func(m *pb.MergeRequest) {
			m.Tensors[0].Outputs[0].Parts = []*pb.FilePart{{FileId: 1, At: []int64{0, 0}, Shape: []int64{2, 3}}}
		}, "output in parts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := make()
			test.spoil(m)
			_, err := DecodeMerge(m, arena{})
			refused(t, err, test.expect)
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	for _, test := range []struct {
		name   string
		decode func() error
		expect string
	}{
		{"no report", func() error { _, err := DecodeReport(nil); return err }, "report"},
		{"threads", func() error { _, err := DecodeReport(&pb.Report{Threads: -1}); return err }, "threads"},
		{"head", func() error { _, err := DecodeHeads([]*pb.HeadReport{{Head: math.MinInt64}}); return err }, "head"},
		{"sequence", func() error { _, err := DecodeHeads([]*pb.HeadReport{{Sequence: 1 << 40}}); return err }, "sequence"},
		{"fewer weights", func() error { _, err := DecodeWeights(&pb.WeightsResponse{}, 1); return err }, "weights"},
		{"weight", func() error {
			_, err := DecodeWeights(&pb.WeightsResponse{Weights: []float64{math.Inf(1)}}, 1)
			return err
		}, "weight"},
		{"rule", func() error {
			_, err := DecodePlan(&pb.PositionPlan{Bands: []*pb.Band{{Query: &pb.Rule{Group: -1}, Key: &pb.Rule{}}}})
			return err
		}, "group"},
		{"bands", func() error {
			_, err := DecodePlan(&pb.PositionPlan{Bands: make([]*pb.Band, maxBands+1)})
			return err
		}, "bands"},
		{"kind", func() error { _, err := DecodeInfo(&pb.StrategyInfo{Name: "x"}); return err }, "kind"},
		{"name", func() error { _, err := DecodeInfo(&pb.StrategyInfo{Kind: 1}); return err }, "name"},
		{"parameter", func() error {
			_, err := DecodeInfo(&pb.StrategyInfo{Name: "x", Kind: 1, Parameters: []*pb.Parameter{nil}})
			return err
		}, "parameter type"},
	} {
		t.Run(test.name, func(t *testing.T) { refused(t, test.decode(), test.expect) })
	}
}

// FuzzDecode decodes arbitrary bytes as every message that has numbers in it,
// and touches all that a strategy or the host may touch.
func FuzzDecode(f *testing.F) {
	m, _ := good()
	for _, seed := range []proto.Message{m, &pb.MergeRequest{Sources: 1}, &pb.PlanRequest{HeadDim: 8}, &pb.Report{Threads: 1}, &pb.PositionPlan{}} {
		bytes, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes, []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, message, maskBytes []byte) {
		_, memory := good()
		copy(memory[2], maskBytes)
		var attention pb.AttentionRequest
		if proto.Unmarshal(message, &attention) == nil {
			if req, err := DecodeAttention(&attention, memory); err == nil {
				touch(req)
			}
		}
		var mask pb.BlockMask
		if proto.Unmarshal(message, &mask) == nil {
			_, _ = DecodeMask(&mask, memory[2])
		}
		var merge pb.MergeRequest
		if proto.Unmarshal(message, &merge) == nil {
			_, _ = DecodeMerge(&merge, memory)
		}
		var plan pb.PositionPlan
		if proto.Unmarshal(message, &plan) == nil {
			if p, err := DecodePlan(&plan); err == nil && p.Validate(128) == nil {
				p.Relative(math.MaxInt32, 0)
			}
		}
		var report pb.Report
		if proto.Unmarshal(message, &report) == nil {
			_, _ = DecodeReport(&report)
		}
		var info pb.StrategyInfo
		if proto.Unmarshal(message, &info) == nil {
			_, _ = DecodeInfo(&info)
		}
	})
}

func touch(req *core.AttentionRequest) {
	for _, x := range []*tensor.Tensor{req.Query, req.Key, req.Value, req.Output, req.LSE} {
		if x != nil && x.Span() > 0 {
			bytes := x.Bytes()
			_ = bytes[0] + bytes[len(bytes)-1]
		}
	}
	if req.Mask == nil {
		return
	}
	for s, extent := range req.Mask.Sequences {
		for head := range req.Mask.Heads {
			for i := range extent.QueryBlocks {
				for _, column := range req.Mask.Row(s, head, i) {
					if int(column) >= extent.KeyBlocks {
						panic("a column outside of the grid passed")
					}
				}
			}
		}
	}
}
