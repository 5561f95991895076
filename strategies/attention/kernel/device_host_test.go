package kernel

import (
	"context"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

// Every element of a tensor of the device is where its copy's strides say,
// whether rows of a head or heads of a row follow each other.
func TestHostLayout(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(name string, most int) int { return rapid.IntRange(1, most).Draw(rt, name) }
		x := cuda.Tensor{Batch: draw("batch", 3), Heads: draw("heads", 4), Rows: draw("rows", 9), Dim: 8 * draw("dim", 2)}
		gap := func() int64 { return int64(8 * rapid.IntRange(0, 2).Draw(rt, "gap")) }
		if rapid.Bool().Draw(rt, "heads outside") {
			x.Stride = int64(x.Dim) + gap()
			x.StrideH = int64(x.Rows)*x.Stride + gap()
			x.StrideB = int64(x.Heads)*x.StrideH + gap()
		} else {
			x.StrideH = int64(x.Dim) + gap()
			x.Stride = int64(x.Heads)*x.StrideH + gap()
			x.StrideB = int64(x.Rows)*x.Stride + gap()
		}
		l := hostLayout(x)
		copied := make([]int, l.bytes/2) // the device element that lies there
		for _, r := range l.runs {
			for i := range r.bytes / 2 {
				copied[r.to/2+i] = r.from/2 + i
			}
		}
		for b := range x.Batch {
			for h := range x.Heads {
				for r := range x.Rows {
					for d := range x.Dim {
						from := b*int(x.StrideB) + h*int(x.StrideH) + r*int(x.Stride) + d
						to := b*int(l.strides[0]) + h*int(l.strides[1]) + r*int(l.strides[2]) + d
						if copied[to] != from {
							rt.Fatalf("%+v: element (%d, %d, %d, %d) is that at %d, want %d", x, b, h, r, d, copied[to], from)
						}
					}
				}
			}
		}
		shape := []int64{int64(x.Batch), int64(x.Heads), int64(x.Rows), int64(x.Dim)}
		if span, err := tensor.Span(tensor.BFloat16, shape, l.strides); err != nil || span > int64(l.bytes) {
			rt.Fatalf("%+v spans %d bytes of %d: %v", l, span, l.bytes, err)
		}
	})
}

func TestOnHostRefusesOtherTiles(t *testing.T) {
	call := &DeviceCall{Request: deviceCall(t, 300, 300), Params: core.Params{"block_size": int64(64)}}
	_, err := OnHost(call, &Part{})
	if typed := core.AsError(err); typed.Kind != core.ErrUnsupported || !strings.Contains(typed.Message, "block_size 64") || typed.Hint == "" {
		t.Errorf("error %v: want one that names block_size 64 and a way out", err)
	}
}

func TestProbeTable(t *testing.T) {
	table, count := probeTable([][]int32{{1, 5}, nil, {2, 3, 9}})
	if want := []int32{1, 5, -1, -1, -1, -1, 2, 3, 9}; count != 3 || !slices.Equal(table, want) {
		t.Errorf("%d a line: %v, want %v", count, table, want)
	}
	if table, count := probeTable(make([][]int32, 2)); count != 0 || len(table) != 0 {
		t.Errorf("no rows made %v", table)
	}
	last := (&DeviceCall{Heads: 2}).LastRows(&Part{Count: 2, Query: cuda.Tensor{Rows: 5}}, 3)
	if want := []int32{2, 3, 4}; len(last) != 4 || !slices.Equal(last[3], want) {
		t.Errorf("last rows %v, want four times %v", last, want)
	}
}

func TestMaskOfSomeSequences(t *testing.T) {
	extents := []core.BlockExtent{{QueryBlocks: 1, KeyBlocks: 1}, {QueryBlocks: 2, KeyBlocks: 2}, {QueryBlocks: 1, KeyBlocks: 1}}
	mask := core.NewBlockMask(128, 2, extents)
	for _, row := range [][]int32{{0}, {}, {0}, {0, 1}, {}, {1}, {0}, {0}} {
		mask.Append(row)
	}
	part := ofSequences(mask, 1, 1)
	if err := part.Validate(true); err != nil {
		t.Fatal(err)
	}
	for h, want := range [][]int32{{0, 1}, {1}} {
		if got := part.Row(0, h, 1); !slices.Equal(got, want) {
			t.Errorf("head %d keeps %v, want %v", h, got, want)
		}
	}
	if ofSequences(mask, 0, 3) != mask {
		t.Error("a mask of all sequences was copied")
	}
}

// A mask without gaps counts as none, in what is reported and measured.
func TestMasksThatKeepEverything(t *testing.T) {
	req := deviceCall(t, 300, 300)
	req.Window = 100
	call := &DeviceCall{Request: req, Heads: 4}
	grid := req.BlockExtents(cuda.Tile)
	mask := core.NewBlockMask(cuda.Tile, 4, grid)
	for range 2 * 4 {
		for _, row := range [][]int32{{0}, {0, 1}, {1, 2}} { // as the window lets the tiles be seen
			mask.Append(row)
		}
	}
	call.kept = []partMask{{first: 0, count: 2, mask: mask, complete: call.complete(mask)}}
	call.report.Heads = make([]core.HeadReport, 8)
	call.waits = true
	if err := call.measure(); err != nil {
		t.Fatal(err)
	}
	call.noteEverything()
	if call.joined() != nil || call.report.Coverage == nil || *call.report.Coverage != 1 || len(call.notes) != 1 {
		t.Errorf("mask %v, coverage %v, notes %q", call.joined(), call.report.Coverage, call.notes)
	}
	mask.Columns, mask.RowPtr[len(mask.RowPtr)-1] = mask.Columns[:len(mask.Columns)-1], mask.RowPtr[len(mask.RowPtr)-1]-1
	if call.complete(mask) {
		t.Error("a mask that misses a tile keeps everything")
	}
}

// What a device cannot do is refused before anything starts, with a way out.
func TestDeviceRefuses(t *testing.T) {
	for name, change := range map[string]func(*DeviceCall){
		"gqa_interleave":  func(c *DeviceCall) { c.Params = core.Params{"gqa_interleave": true} },
		"mean_correction": func(c *DeviceCall) { c.Params = core.Params{"mean_correction": true} },
		"count twice":     func(c *DeviceCall) { c.Request.Position = &core.PositionPlan{Twice: 7} },
	} {
		call := &DeviceCall{Request: deviceCall(t, 300, 300), Heads: 4, ctx: context.Background()}
		if err := call.refuse(); err != nil {
			t.Fatal(err)
		}
		change(call)
		if typed := core.AsError(call.refuse()); typed == nil || typed.Kind != core.ErrUnsupported || !strings.Contains(typed.Message, name) || typed.Hint == "" {
			t.Errorf("%s: %v", name, typed)
		}
	}
}
