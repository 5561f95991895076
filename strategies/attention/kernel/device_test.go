package kernel

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware/cuda"
)

func deviceTensor(t testing.TB, dtype tensor.Dtype, shape ...int64) *tensor.Tensor {
	t.Helper()
	address := uintptr(1 << 40)
	x, err := tensor.Borrow(*(*unsafe.Pointer)(unsafe.Pointer(&address)), dtype, shape, nil, "cuda:0")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func deviceCall(t testing.TB, queries, keys int64) *core.AttentionRequest {
	return &core.AttentionRequest{Query: deviceTensor(t, tensor.BFloat16, 2, 4, queries, 64), Key: deviceTensor(t, tensor.BFloat16, 2, 2, keys, 64),
		Value: deviceTensor(t, tensor.BFloat16, 2, 2, keys, 64), Output: deviceTensor(t, tensor.BFloat16, 2, 4, queries, 64), Causal: true}
}

// The device's rows of a mask keep exactly the tiles that the mask does.
func TestTilesOfAMask(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ratio := rapid.IntRange(1, 3).Draw(rt, "ratio")
		size, heads := ratio*cuda.Tile, 2
		offset, rows := rapid.IntRange(0, 900).Draw(rt, "offset"), rapid.IntRange(1, 900).Draw(rt, "rows")
		causal := rapid.Bool().Draw(rt, "causal")
		keys := offset + rows
		first := offset / size
		extent := core.BlockExtent{FirstQueryBlock: first, QueryBlocks: (keys-1)/size - first + 1, KeyBlocks: ceilDiv(keys, size)}
		kept := map[[3]int]bool{}
		mask := core.NewBlockMask(size, heads, []core.BlockExtent{extent})
		for h := range heads {
			for i := range extent.QueryBlocks {
				var row []int32
				for j := range extent.KeyBlocks {
					if (!causal || j <= first+i) && rapid.Bool().Draw(rt, "keep") {
						row = append(row, int32(j))
						kept[[3]int{h, first + i, j}] = true
					}
				}
				mask.Append(row)
			}
		}
		part := &Part{Count: 1, Offset: offset, Query: cuda.Tensor{Rows: rows}, Key: cuda.Tensor{Rows: keys}}
		rowPtr, columns := tilesOf(part, mask, 0, heads, causal)
		tiles, firstTile := (keys-1)/cuda.Tile-offset/cuda.Tile+1, offset/cuda.Tile
		if len(rowPtr) != heads*tiles+1 || int(rowPtr[len(rowPtr)-1]) != len(columns) {
			rt.Fatalf("%d row pointers to %d columns, want %d", len(rowPtr), len(columns), heads*tiles+1)
		}
		for h := range heads {
			for i := range tiles {
				row := columns[rowPtr[h*tiles+i]:rowPtr[h*tiles+i+1]]
				for j := range ceilDiv(keys, cuda.Tile) {
					want := kept[[3]int{h, (firstTile + i) / ratio, j / ratio}] && (!causal || j <= firstTile+i)
					if slices.Contains(row, int32(j)) != want {
						rt.Fatalf("head %d, tile (%d, %d): kept %v, want %v", h, firstTile+i, j, !want, want)
					}
				}
			}
		}
	})
}

func TestBandsOfAPart(t *testing.T) {
	near := core.Band{Chunk: 1, Low: math.MinInt64, High: 100, Query: core.Identity(), Key: core.Identity()}
	far := core.Band{Chunk: 1, Low: 100, High: math.MaxInt64, Query: core.Shift(-50), Key: core.Identity()}
	turned := far
	turned.Key = core.Shift(3)
	plan := func(bands ...core.Band) *core.PositionPlan {
		return &core.PositionPlan{Strategy: "tested", Bands: bands}
	}
	chunked := plan(near, far)
	chunked.Bands[0].Chunk, chunked.Bands[1].Chunk = 64, 64
	for name, c := range map[string]struct {
		plan         *core.PositionPlan
		offset, rows int
		full         bool
		far, fails   bool
	}{
		"both":                  {plan: plan(near, far), rows: 300, far: true},
		"short":                 {plan: plan(near, far), rows: 100},
		"decode, far":           {plan: plan(near, far), offset: 100, rows: 1, far: true},
		"decode, near":          {plan: plan(near, far), offset: 99, rows: 1},
		"keys turn by band":     {plan: plan(near, turned), rows: 300, fails: true},
		"but not where unseen":  {plan: plan(near, turned), rows: 100},
		"chunks":                {plan: chunked, rows: 300, fails: true},
		"two without causality": {plan: plan(near, far), rows: 300, full: true, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			req := deviceCall(t, 8, 8)
			req.Causal = !c.full
			call := &DeviceCall{Request: req}
			part := &Part{Offset: c.offset, Query: cuda.Tensor{Rows: c.rows}, Key: cuda.Tensor{Rows: c.offset + c.rows}}
			_, second, border, err := call.bands(part, c.plan)
			if (err != nil) != c.fails || (second != nil) != c.far || c.far && border != 100 {
				t.Errorf("a second band %v from %d, error %v", second, border, err)
			}
			if err != nil && core.AsError(err).Kind != core.ErrUnsupported {
				t.Errorf("error %v: want unsupported", err)
			}
		})
	}
}

// One turn makes the far queries of near ones only where all of them move alike, from where they arrived.
func TestOneTurn(t *testing.T) {
	frequencies := []float64{1, .1, .01}
	for name, c := range map[string]struct {
		near, far core.Rule
		applied   []float64
		one       bool
	}{
		"shifted":           {core.Identity(), core.Shift(-40), frequencies, true},
		"near too":          {core.Shift(3), core.Shift(-40), frequencies, false},
		"grouped":           {core.Identity(), core.Rule{Scale: 1, Offset: -40, Group: 4}, frequencies, false},
		"constant":          {core.Identity(), core.Rule{Offset: 40}, frequencies, false},
		"limited":           {core.Identity(), core.Rule{Scale: 1, Limit: 100}, frequencies, false},
		"other frequencies": {core.Identity(), core.Shift(-40), []float64{1, .1, .02}, false},
	} {
		plan := &core.PositionPlan{InvFreq: frequencies, AppliedInvFreq: c.applied, Interleaved: true}
		turn, one := oneTurn(plan, &core.Band{Query: c.near}, &core.Band{Query: c.far})
		if one != c.one {
			t.Errorf("%s: one turn is %v, want %v", name, one, c.one)
		}
		if one && (!turn.Interleaved || len(turn.Angles) != 3 || turn.Angles[1] != -4) {
			t.Errorf("%s: %+v, want angles of -40 positions", name, turn)
		}
	}
	if _, one := oneTurn(&core.PositionPlan{}, &core.Band{Query: core.Identity()}, nil); one {
		t.Error("a plan of one band has a turn")
	}
}

func TestPartsOfACall(t *testing.T) {
	whole := deviceCall(t, 300, 300)
	if !uniform(whole, whole.Extents()) {
		t.Error("a batch without padding is not uniform")
	}
	padded := deviceCall(t, 300, 300)
	padded.KeyStart = []int64{0, 7}
	if uniform(padded, padded.Extents()) {
		t.Error("a padded batch is uniform")
	}
	call := &DeviceCall{Request: padded, info: core.Info{Name: "flexprefill"}}
	if call.densely(padded.Extents()) {
		t.Error("a padded prompt is not selected from")
	}
	step := deviceCall(t, 1, 300)
	step.QueryOffset, step.KeyStart = []int64{299, 299}, []int64{0, 7}
	call.Request = step
	if !call.densely(step.Extents()) {
		t.Error("padded decoding takes a launch for each row")
	}
	if all := sequences(step.Extents()); all[1] != (cuda.Sequence{Batch: 1, Queries: 1, KeyRow: 7, Keys: 293, Offset: 292}) {
		t.Errorf("sequences %+v", all)
	}
}

// What has no kernels says so before any device is asked for.
func TestDeviceErrors(t *testing.T) {
	k := New(nil)
	choose := func(context.Context, *Call) (*core.Selection, error) { return nil, errors.New("on the cpu") }
	onCPU := k.Strategy(core.Info{Name: "here"}, choose)
	both := k.Strategy(core.Info{Name: "both"}, choose, func(*DeviceCall, *Part) (*DeviceSelection, error) { return &DeviceSelection{}, nil })
	if devices := both.Info().Capabilities.Devices; !slices.Equal(devices, []string{"cpu", "cuda"}) {
		t.Errorf("devices %v", devices)
	}
	for name, s := range map[string]core.AttentionStrategy{"a strategy of the CPU": onCPU, "a kernel without devices": both} {
		_, err := s.(core.Attender).Attend(t.Context(), deviceCall(t, 300, 300))
		if core.AsError(err).Kind != core.ErrDeviceUnavailable {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Select(t.Context(), deviceCall(t, 300, 300)); core.AsError(err).Kind != core.ErrDeviceUnavailable {
			t.Errorf("%s selects: %v", name, err)
		}
	}
	for _, c := range []struct {
		err  error
		kind core.ErrorKind
	}{
		{&cuda.DriverError{Call: "cuLaunchKernel", Code: 700}, core.ErrPluginCrashed},
		{errors.Join(errors.New("first"), &cuda.DriverError{Code: 719}), core.ErrPluginCrashed},
		{&cuda.DriverError{Code: 2}, core.ErrOutOfMemory},
		{&cuda.DriverError{Code: 1}, core.ErrInternal},
		{&cuda.NotAvailableError{Missing: "libnvrtc"}, core.ErrDeviceUnavailable},
		{&cuda.CompileError{}, core.ErrInternal},
		{errors.New("cuda: head_dim 7"), core.ErrUnsupported},
		{core.Invalid("", "typed"), core.ErrInvalidArgument},
	} {
		if got := core.AsError(DeviceError(c.err)); got.Kind != c.kind {
			t.Errorf("%v became %s, want %s", c.err, got.Kind, c.kind)
		}
	}
	if DeviceError(nil) != nil {
		t.Error("nothing became an error")
	}
}
