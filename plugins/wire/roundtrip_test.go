package wire

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// arena is memory by segment id; files are named only.
type arena map[uint64][]byte

func (a arena) Segment(ref *pb.MemoryRef, _ bool) ([]byte, error) {
	bytes := a[ref.GetSegmentId()]
	offset, size := ref.GetOffset(), ref.GetSize()
	if ref.GetGeneration() != 1 || offset < 0 || size < 0 || offset > int64(len(bytes)) || size > int64(len(bytes))-offset {
		return nil, errors.New("outside")
	}
	return bytes[offset : offset+size : offset+size], nil
}

func (a arena) File(id uint64, offset, size int64, writable bool) (tensor.Extent, error) {
	if id != 1 || offset < 0 || size < 0 {
		return tensor.Extent{}, errors.New("outside")
	}
	return tensor.Extent{Offset: offset, Size: size, Writable: writable}, nil
}

// Device opens blocks whose handle starts with 1, on another number than the host's.
func (a arena) Device(block tensor.Block) (uintptr, tensor.Device, error) {
	if block.Handle[0] != 1 {
		return 0, "", core.Errorf(core.ErrDeviceUnavailable, "no such block")
	}
	return 1 << 40, tensor.CUDADevice(3), nil
}

// travel sends a message through its bytes.
func travel[M proto.Message](t *rapid.T, m M) M {
	bytes, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	arrived := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(bytes, arrived); err != nil {
		t.Fatal(err)
	}
	return arrived.(M)
}

func same(t *rapid.T, got, want any) {
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("\n got %+v\nwant %+v", got, want)
	}
}

func must[T any](t *rapid.T, value T, err error) T {
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestParams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := paramSets.Draw(t, "params")
		values, err := EncodeParams(want)
		m := travel(t, &pb.PlanRequest{Params: must(t, values, err)})
		same(t, DecodeParams(m.GetParams()), want)
	})
	if _, err := EncodeParams(core.Params{"x": 1}); err == nil {
		t.Error("an int is not a canonical value, and passed")
	}
}

func TestInfo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := infos.Draw(t, "info")
		m, err := EncodeInfo(want)
		got, decodeErr := DecodeInfo(travel(t, must(t, m, err)))
		same(t, must(t, got, decodeErr), want)
	})
}

func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := plans.Draw(t, "plan")
		got, err := DecodePlan(travel(t, EncodePlan(want)))
		same(t, must(t, got, err), want)
	})
}

func TestPositionRequest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &core.PositionRequest{
			HeadDim: rapid.IntRange(1, maxCount-1).Draw(t, "head_dim"), InvFreq: list(finites).Draw(t, "inv_freq"),
			Length: rapid.Int64Min(0).Draw(t, "length"), TrainLength: rapid.Int64Min(0).Draw(t, "train_length"),
			Interleaved: rapid.Bool().Draw(t, "interleaved"), Params: paramSets.Draw(t, "params"),
		}
		m, err := EncodePositionRequest(want)
		got, decodeErr := DecodePositionRequest(travel(t, must(t, m, err)))
		same(t, must(t, got, decodeErr), want)
	})
}

func TestReport(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := reports.Draw(t, "report")
		got, err := DecodeReport(travel(t, EncodeReport(&want)))
		same(t, must(t, got, err), want)
	})
}

// placed encodes a request with its tensors and mask in an arena.
func placed(t *rapid.T, req *core.AttentionRequest) (*pb.AttentionRequest, arena) {
	m, err := EncodeAttention(req)
	if err != nil {
		t.Fatal(err)
	}
	a := arena{}
	place := func(x *tensor.Tensor) *pb.TensorRef {
		if x == nil {
			return nil
		}
		id := uint64(len(a) + 1)
		a[id] = x.Buffer().Bytes()
		return EncodeTensor(x, id, 1, 0)
	}
	m.Query, m.Key, m.Value, m.Output, m.Lse = place(req.Query), place(req.Key), place(req.Value), place(req.Output), place(req.LSE)
	if req.Mask != nil {
		size := MaskSize(int64(len(req.Mask.RowPtr)-1), int64(len(req.Mask.Columns)))
		words := make([]int64, (size+7)/8)
		bytes := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size)
		if m.Mask, err = EncodeMask(req.Mask, bytes); err != nil {
			t.Fatal(err)
		}
		a[100] = bytes
		m.Mask.Memory = &pb.MemoryRef{SegmentId: 100, Generation: 1, Size: size}
	}
	return m, a
}

func TestAttentionRequest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := attentionRequests.Draw(t, "request")
		if want.Validate() != nil {
			t.Skip("not valid")
		}
		m, memory := placed(t, want)
		got, err := DecodeAttention(travel(t, m), memory)
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range [][2]*tensor.Tensor{{got.Query, want.Query}, {got.Key, want.Key}, {got.Value, want.Value}, {got.Output, want.Output}, {got.LSE, want.LSE}} {
			sameTensor(t, pair[0], pair[1])
		}
		if want.Mask != nil && !got.Mask.Equal(want.Mask) {
			t.Fatalf("mask %+v, want %+v", got.Mask, want.Mask)
		}
		got.Query, got.Key, got.Value, got.Output, got.LSE, got.Mask = want.Query, want.Key, want.Value, want.Output, want.LSE, want.Mask
		same(t, got, want)
	})
}

// sameTensor checks that two tensors are one piece of memory.
func sameTensor(t *rapid.T, got, want *tensor.Tensor) {
	if want == nil {
		same(t, got, want)
		return
	}
	if got.Pointer() != want.Pointer() || got.Dtype() != want.Dtype() || got.Device() != want.Device() {
		t.Fatalf("%v at %p, want %v at %p", got, got.Pointer(), want, want.Pointer())
	}
	same(t, got.Shape(), want.Shape())
	same(t, got.Strides(), want.Strides())
}

func TestMergeRequest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := mergeRequests.Draw(t, "request")
		m, err := EncodeMerge(want, func(o core.MergeOperand, _ bool) (uint64, int64, error) { return 1, o.Extent.Offset, nil })
		got, decodeErr := DecodeMerge(travel(t, must(t, m, err)), arena{})
		same(t, must(t, got, decodeErr), want)
	})
}

func TestMergeResponse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &core.MergeResponse{Backend: texts.Draw(t, "backend"), Notes: list(texts).Draw(t, "notes")}
		for range rapid.IntRange(0, 3).Draw(t, "tensors") {
			want.Tensors = append(want.Tensors, core.TensorReport{
				Name: texts.Draw(t, "name"), NonFinite: list(rapid.Int64()).Draw(t, "non_finite"), Policy: texts.Draw(t, "policy"),
			})
		}
		same(t, DecodeMergeResponse(travel(t, EncodeMergeResponse(want))), want)
	})
}

func TestWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "sources")
		want := &core.WeightsRequest{Sources: n, Steps: listOf(n, finites).Draw(t, "steps"), Params: paramSets.Draw(t, "params")}
		m, err := EncodeWeightsRequest(want)
		got, decodeErr := DecodeWeightsRequest(travel(t, must(t, m, err)))
		same(t, must(t, got, decodeErr), want)
		weights, err := DecodeWeights(travel(t, &pb.WeightsResponse{Weights: want.Steps}), n)
		same(t, must(t, weights, err), want.Steps)
	})
}

func TestErrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &core.Error{
			Kind: rapid.SampledFrom(core.ErrorKinds()).Draw(t, "kind"), Message: texts.Draw(t, "message"),
			Hint: texts.Draw(t, "hint"), Strategy: texts.Draw(t, "strategy"),
		}
		got, ok := DecodeError(EncodeError(want))
		if !ok {
			t.Fatal("it was not recognised")
		}
		same(t, got, want)
	})
	if got, ok := DecodeError(EncodeError(errors.New("bytes \xff"))); !ok || got.Kind != core.ErrInternal || got.Message != "bytes \uFFFD" {
		t.Errorf("got %+v", got)
	}
	if got, ok := DecodeError(errors.New("connection lost")); ok {
		t.Errorf("an error of the transport was taken for a plugin's: %+v", got)
	}
}

// TestEnums checks that every value that core has travels under its name.
func TestEnums(t *testing.T) {
	for _, kind := range core.ErrorKinds() {
		if got := decodeErrorKind(encodeErrorKind(kind)); got != kind || encodeErrorKind(kind) == 0 {
			t.Errorf("error kind %q becomes %q", kind, got)
		}
	}
	for d := tensor.Float32; d.Size() > 0; d++ {
		if got, err := decodeDtype("x", pb.Dtype(d)); got != d || err != nil {
			t.Errorf("dtype %v becomes %v, %v", d, got, err)
		}
		if want := "DTYPE_" + strings.ToUpper(d.String()); pb.Dtype(d).String() != want {
			t.Errorf("dtype %v is %v in messages, want %v", d, pb.Dtype(d), want)
		}
	}
}
