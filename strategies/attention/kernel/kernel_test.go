package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/custom"
	"github.com/trivium-ml/trivium/strategies/attention/dense"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/attention/streaming"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

func attend(t *testing.T, s core.AttentionStrategy, req *core.AttentionRequest) *core.AttentionResponse {
	t.Helper()
	response, err := s.(core.Attender).Attend(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

var shape = request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: 200, Keys: 200, Dim: 32}

// narrowed is the part of a tensor along the axis of tokens.
func narrowed(t *testing.T, x *tensor.Tensor, axis, start, length int) *tensor.Tensor {
	t.Helper()
	view, err := x.Narrow(axis, start, length)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// alone is sequence rows [start, end) of a batch row as a request of its own.
func alone(t *testing.T, req *core.AttentionRequest, batch, start, end int) *core.AttentionRequest {
	t.Helper()
	one := *req
	cut := func(x *tensor.Tensor) *tensor.Tensor {
		return narrowed(t, narrowed(t, x, 0, batch, 1), 2, start, end-start)
	}
	one.Query, one.Key, one.Value = cut(req.Query), cut(req.Key), cut(req.Value)
	one.QueryOffset, one.KeyStart, one.KeyEnd, one.CuSeqlens = nil, nil, nil, nil
	request.Outputs(&one)
	return &one
}

// strategies that choose by position alone, so that a sequence's blocks must be
// the same wherever it lies.
func positional(k *kernel.Kernel) map[string]core.AttentionStrategy {
	return map[string]core.AttentionStrategy{"dense": dense.New(k), "streaming": streaming.New(k)}
}

var streamingParams = map[string]core.Params{"streaming": {"sink": int64(16), "recent": int64(40), "block_size": int64(16)}}

func TestPaddingAndPackingChangeNothing(t *testing.T) {
	segments := [][2]int{{0, 70}, {70, 71}, {71, 200}}
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		for name, s := range positional(kernel.New(backend)) {
			t.Run(name, func(t *testing.T) {
				packed := request.Random(1, shape)
				packed.Params, packed.WantMask = streamingParams[name], true
				packed.QueryOffset, packed.CuSeqlens = nil, []int64{0, 70, 71, 200}
				response := attend(t, s, packed)
				for i, segment := range segments {
					one := alone(t, packed, 0, segment[0], segment[1])
					single := attend(t, s, one)
					compare(t, fmt.Sprintf("packed segment %d", i), one, packed, 0, segment[0])
					sameBlocks(t, single, response, i)
				}
				for i, segment := range segments {
					padded := request.Random(1, shape)
					padded.Params, padded.WantMask = streamingParams[name], true
					padded.KeyStart, padded.KeyEnd = []int64{int64(segment[0])}, []int64{int64(segment[1])}
					response := attend(t, s, padded)
					one := alone(t, padded, 0, segment[0], segment[1])
					single := attend(t, s, one)
					compare(t, fmt.Sprintf("padding around segment %d", i), one, padded, 0, segment[0])
					sameBlocks(t, single, response, 0)
					checkPadding(t, padded, segment[0], segment[1])
				}
			})
		}
	})
}

func compare(t *testing.T, name string, want, got *core.AttentionRequest, batch, start int) {
	t.Helper()
	n := want.Query.Dim(2)
	part := narrowed(t, narrowed(t, got.Output, 0, batch, 1), 2, start, n)
	if d := request.Difference(want.Output, part); !(d <= 1e-6) {
		t.Errorf("%s: output differs by %g", name, d)
	}
	all, _ := got.LSE.Float32s()
	one, _ := want.LSE.Float32s()
	for h := range want.Query.Dim(1) {
		for i := range n {
			x, y := one[h*n+i], all[(batch*want.Query.Dim(1)+h)*got.Query.Dim(2)+start+i]
			if !(math.Abs(float64(x-y)) <= 1e-5) {
				t.Fatalf("%s: head %d, query %d: lse %g, want %g", name, h, i, y, x)
			}
		}
	}
}

func sameBlocks(t *testing.T, single, many *core.AttentionResponse, sequence int) {
	t.Helper()
	if many.Mask == nil || single.Mask == nil { // a segment of one token alone is dense
		return
	}
	for h := range many.Mask.Heads {
		for i := range single.Mask.Sequences[0].QueryBlocks {
			if got, want := many.Mask.Row(sequence, h, i), single.Mask.Row(0, h, i); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("sequence %d, head %d, query block %d: blocks %v, want %v", sequence, h, i, got, want)
			}
		}
	}
}

func checkPadding(t *testing.T, req *core.AttentionRequest, start, end int) {
	t.Helper()
	lse, _ := req.LSE.Float32s()
	for h := range req.Query.Dim(1) {
		for i := range req.Query.Dim(2) {
			if i >= start && i < end {
				continue
			}
			if !math.IsInf(float64(lse[h*req.Query.Dim(2)+i]), -1) {
				t.Fatalf("padding query %d has lse %g", i, lse[h*req.Query.Dim(2)+i])
			}
			for _, x := range request.Row(req.Output, 0, h, i) {
				if x != 0 {
					t.Fatalf("padding query %d has output %g", i, x)
				}
			}
		}
	}
}

func TestPaddingOverwritesGarbage(t *testing.T) {
	req := request.Random(1, shape)
	request.Fill(req.Output, func([4]int) float64 { return 9 })
	req.KeyStart = []int64{50}
	attend(t, dense.New(kernel.New(backends.Best(t))), req)
	checkPadding(t, req, 50, 200)
}

func TestChunksAgree(t *testing.T) {
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		for name, s := range positional(kernel.New(backend)) {
			whole := request.Random(3, shape)
			whole.Params, whole.WantMask = streamingParams[name], true
			one := attend(t, s, whole)
			for first := 0; first < 200; {
				last := min(first+77, 200)
				chunk := *whole
				chunk.Query = narrowed(t, whole.Query, 2, first, last-first)
				chunk.Key, chunk.Value = narrowed(t, whole.Key, 2, 0, last), narrowed(t, whole.Value, 2, 0, last)
				chunk.QueryOffset = []int64{int64(first)}
				request.Outputs(&chunk)
				part := attend(t, s, &chunk)
				compare(t, name, &chunk, whole, 0, first)
				if part.Mask != nil {
					for i := range part.Mask.Sequences[0].QueryBlocks {
						at := part.Mask.Sequences[0].FirstQueryBlock + i
						if got, want := part.Mask.Row(0, 1, i), one.Mask.Row(0, 1, at); fmt.Sprint(got) != fmt.Sprint(want) {
							t.Errorf("%s: query block %d: %v in a chunk, %v at once", name, at, got, want)
						}
					}
				}
				first = last
			}
		}
	})
}

func TestCoverageIsTheKeptMass(t *testing.T) {
	for _, sinks := range [][]float32{nil, {0.5, 2, -1, 3}} {
		t.Run(fmt.Sprint("sinks ", sinks), func(t *testing.T) {
			backend := oracle.New()
			req := request.Random(5, shape)
			req.Params, req.Sinks, req.ProbeRows, req.WantMask = streamingParams["streaming"], sinks, 1000, true
			response := attend(t, streaming.New(kernel.New(backend)), req)
			// The same by adding up the dense softmax over the kept blocks of all rows.
			problem := &hardware.Problem{Scale: 1 / math.Sqrt(32), Causal: true, Sequences: []hardware.Sequence{{
				Query: request.Matrices(req.Query, 0), Key: request.Matrices(req.Key, 0), Value: request.Matrices(req.Value, 0)}}}
			session, _ := backend.Prepare(context.Background(), problem)
			for h := range 4 {
				rows := make([]int32, 200)
				for i := range rows {
					rows[i] = int32(i)
				}
				mass, _ := session.RowMass(context.Background(), []hardware.RowSet{{Head: h, Rows: rows}}, 16)
				want := 0.0
				for i := range rows {
					for _, j := range response.Mask.Row(0, h, i/16) {
						want += float64(mass[0].Mass[i*13+int(j)]) / 200
					}
				}
				report := response.Report.Heads[h]
				if !(math.Abs(*report.Coverage-want) <= 1e-5) || report.ProbeRows != 200 {
					t.Errorf("head %d: coverage %g on %d rows, want %g on 200", h, *report.Coverage, report.ProbeRows, want)
				}
				if *report.CoverageLower > *report.Coverage {
					t.Errorf("head %d: bound %g above the mean %g", h, *report.CoverageLower, *report.Coverage)
				}
			}
		})
	}
}

func TestDecodingIsDense(t *testing.T) {
	one := shape
	one.Queries = 1
	req := request.Random(1, one)
	req.Params = streamingParams["streaming"]
	k := kernel.New(backends.Best(t))
	response := attend(t, streaming.New(k), req)
	if response.Report.Density != 1 || response.Report.Heads[0].Pattern != "dense_decode" {
		t.Errorf("density %g, pattern %q: want a dense decoding step", response.Report.Density, response.Report.Heads[0].Pattern)
	}
	want := *req
	want.Params = nil
	request.Outputs(&want)
	attend(t, dense.New(k), &want)
	if d := request.Difference(req.Output, want.Output); d != 0 {
		t.Errorf("output differs from dense by %g", d)
	}
}

func TestCustom(t *testing.T) {
	k := kernel.New(backends.Best(t))
	req := request.Random(1, shape)
	req.Params, req.WantMask = streamingParams["streaming"], true
	chosen := attend(t, streaming.New(k), req)
	again := *req
	again.Params, again.Mask = nil, chosen.Mask
	request.Outputs(&again)
	report := attend(t, custom.New(k), &again).Report
	if d := request.Difference(req.Output, again.Output); d != 0 {
		t.Errorf("the same mask gives another output, by %g", d)
	}
	if report.Density != chosen.Report.Density {
		t.Errorf("density %g, want %g", report.Density, chosen.Report.Density)
	}
	one := core.NewBlockMask(16, 1, chosen.Mask.Sequences)
	for i := range chosen.Mask.Sequences[0].QueryBlocks {
		one.Append(chosen.Mask.Row(0, 0, i))
	}
	again.Mask = one
	request.Outputs(&again)
	attend(t, custom.New(k), &again)
	if d := request.Difference(req.Output, again.Output); d != 0 {
		t.Errorf("a mask of one head gives another output, by %g", d)
	}
	again.Mask = nil
	if _, err := custom.New(k).Select(context.Background(), &again); core.AsError(err) == nil || core.AsError(err).Kind != core.ErrInvalidArgument {
		t.Errorf("without a mask: error %v, want invalid_argument", err)
	}
	wrong := core.NewBlockMask(16, 4, []core.BlockExtent{{QueryBlocks: 1, KeyBlocks: 1}})
	for range 4 {
		wrong.Append([]int32{0})
	}
	again.Mask = wrong
	if _, err := custom.New(k).(core.Attender).Attend(context.Background(), &again); core.AsError(err) == nil || core.AsError(err).Kind != core.ErrInvalidArgument {
		t.Errorf("with a mask of another grid: error %v, want invalid_argument", err)
	}
}

func TestForceDense(t *testing.T) {
	k := kernel.New(backends.Best(t))
	req := request.Random(1, shape)
	req.Params, req.ForceDense = streamingParams["streaming"], true
	response := attend(t, streaming.New(k), req)
	if response.Report.Density != 1 || *response.Report.Coverage != 1 || len(response.Report.Notes) == 0 {
		t.Errorf("report %+v: want density 1, coverage 1 and a note", response.Report)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	req := request.Random(1, shape)
	req.Params = streamingParams["streaming"]
	if _, err := streaming.New(kernel.New(backends.Best(t))).(core.Attender).Attend(ctx, req); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want cancelled", err)
	}
}

func TestWindowLeavesOutBlocks(t *testing.T) {
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		req := request.Random(1, shape)
		req.Window, req.WantMask = 33, true
		req.Params = core.Params{"sink": int64(16), "recent": int64(16), "block_size": int64(16)}
		response := attend(t, streaming.New(kernel.New(backend)), req)
		if row := response.Mask.Row(0, 0, 12); fmt.Sprint(row) != "[11 12]" {
			t.Errorf("query block 12 keeps %v: the window does not reach the sink, so want [11 12]", row)
		}
		// Whatever is kept beyond the window changes nothing, and all of it is dense.
		req.Params["recent"] = int64(1000)
		request.Outputs(req)
		response = attend(t, streaming.New(kernel.New(backend)), req)
		want := *req
		want.Params = nil
		request.Outputs(&want)
		attend(t, dense.New(kernel.New(oracle.New())), &want)
		if d := request.Difference(req.Output, want.Output); response.Mask != nil || !(d <= 1e-5) {
			t.Errorf("output differs from the dense window by %g, mask %v", d, response.Mask)
		}
	})
}
