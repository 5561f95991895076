package roundtrip

import (
	"strings"
	"sync"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/host"
)

func TestAttend(t *testing.T) {
	h, engine := start(t, host.Options{})
	req := request(t, h, core.Params{"factor": 2.5})
	req.WantMask = true
	response, err := engine.Attend(t.Context(), "identity", req)
	if err != nil {
		t.Fatal(err)
	}
	checkIdentity(t, req, 2.5)
	if response.Report.Plugin != "tested" || response.Report.Backend != "test" || response.Report.Times.Transport <= 0 {
		t.Errorf("report %+v", response.Report)
	}
	if want := core.DenseMask(64, 4, req.BlockExtents(64), true); response.Mask == nil || !response.Mask.Equal(want) {
		t.Errorf("mask %+v, want %+v", response.Mask, want)
	}
	if got := h.Stats().BytesCopied; got != 0 {
		t.Errorf("%d bytes copied, want 0", got)
	}
}

// TestCopies counts bytes of tensors that lie in other memory: each is copied
// once, whatever its strides.
func TestCopies(t *testing.T) {
	h, engine := start(t, host.Options{})
	const batch, heads, kvHeads, length, dim = 2, 4, 2, 50, 8
	q, kv, lse := int64(batch*heads*length*dim*4), int64(batch*kvHeads*length*dim*4), int64(batch*heads*length*4)
	for _, test := range []struct {
		name string
		make func(t *testing.T, heads int64) *tensor.Tensor
		want int64
	}{
		{"shared", func(t *testing.T, n int64) *tensor.Tensor { return shared(t, h.Pool(), batch, n, length, dim) }, lse},
		{"row-major", func(t *testing.T, n int64) *tensor.Tensor { return foreign(t, batch, n, length, dim) }, 2*q + 2*kv + lse},
		{"transposed", func(t *testing.T, n int64) *tensor.Tensor { return transposed(t, batch, n, length, dim, length) }, 2*q + 2*kv + lse},
		{"gaps", func(t *testing.T, n int64) *tensor.Tensor { return transposed(t, batch, n, length, dim, 2*length) }, 2*q + 2*kv + lse},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := &core.AttentionRequest{
				Query: test.make(t, heads), Key: test.make(t, kvHeads), Value: test.make(t, kvHeads), Output: test.make(t, heads),
				LSE: foreign(t, batch, heads, length), Causal: true,
			}
			number(req.Query, 7)
			before := h.Stats().BytesCopied
			response, err := engine.Attend(t.Context(), "identity", req)
			if err != nil {
				t.Fatal(err)
			}
			checkIdentity(t, req, 1)
			if got := h.Stats().BytesCopied - before; got != test.want {
				t.Errorf("%d bytes copied, want %d", got, test.want)
			}
			if notes := strings.Join(response.Report.Notes, "\n"); !strings.Contains(notes, "copied") || response.Report.Times.Copy <= 0 {
				t.Errorf("notes %q, times %+v: the copy is not reported", notes, response.Report.Times)
			}
		})
	}
}

// TestGapsStay checks that copying an output back leaves what lies between its
// elements alone.
func TestGapsStay(t *testing.T) {
	h, engine := start(t, host.Options{})
	req := request(t, h, nil)
	storage := foreign(t, 1, 4, 200, 8)
	all, err := storage.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i] = -1
	}
	if req.Output, err = storage.Narrow(2, 0, 100); err != nil {
		t.Fatal(err)
	}
	defer req.Output.Release()
	if _, err := engine.Attend(t.Context(), "identity", req); err != nil {
		t.Fatal(err)
	}
	checkIdentity(t, req, 1)
	for head := range 4 {
		for i := 100 * 8; i < 200*8; i++ {
			if got := all[head*200*8+i]; got != -1 {
				t.Fatalf("head %d, element %d beside the output is %g", head, i, got)
			}
		}
	}
}

func TestSelect(t *testing.T) {
	h, engine := start(t, host.Options{})
	for _, test := range []struct {
		name   string
		change func(*core.AttentionRequest)
	}{
		{"one sequence", func(*core.AttentionRequest) {}},
		{"chunk", func(r *core.AttentionRequest) { r.QueryOffset = []int64{0} }},
		{"padded", func(r *core.AttentionRequest) { r.KeyStart = []int64{30} }},
		{"packed", func(r *core.AttentionRequest) { r.CuSeqlens = []int64{0, 20, 100} }},
		{"small blocks", func(r *core.AttentionRequest) { r.Params = core.Params{"block_size": int64(16)} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := request(t, h, nil)
			test.change(req)
			selection, err := engine.Select(t.Context(), "selector", req)
			if err != nil {
				t.Fatal(err)
			}
			want, err := selector{}.Select(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if !selection.Mask.Equal(want.Mask) || len(selection.Heads) != 1 || selection.Heads[0].Pattern != "diagonal" {
				t.Errorf("got %+v, want %+v", selection, want)
			}
		})
	}
}

func TestSelectGivenMask(t *testing.T) {
	h, engine := start(t, host.Options{})
	for _, heads := range []int{4, 1} { // one for each query head, or one for all
		req := request(t, h, nil)
		req.Mask = core.DenseMask(32, heads, req.BlockExtents(32), true)
		selection, err := engine.Select(t.Context(), "selector", req)
		if err != nil {
			t.Fatal(err)
		}
		if want := core.DenseMask(32, 4, req.BlockExtents(32), true); !selection.Mask.Equal(want) {
			t.Errorf("%d heads: got %+v, want %+v", heads, selection.Mask, want)
		}
	}
}

// TestBadGivenMask checks that a mask that does not fit the request is refused
// before it reaches the plugin.
func TestBadGivenMask(t *testing.T) {
	h, engine := start(t, host.Options{})
	for _, test := range []struct {
		name  string
		spoil func(*core.BlockMask)
	}{
		{"no rows", func(m *core.BlockMask) { m.RowPtr = nil }},
		{"a row too few", func(m *core.BlockMask) { m.RowPtr = m.RowPtr[:len(m.RowPtr)-1] }},
		{"other heads", func(m *core.BlockMask) { m.Heads = 2 }},
		{"another grid", func(m *core.BlockMask) { m.Sequences[0].KeyBlocks = 9 }},
		{"no block size", func(m *core.BlockMask) { m.BlockSize = 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := request(t, h, nil)
			req.Mask = core.DenseMask(32, 4, req.BlockExtents(32), true)
			test.spoil(req.Mask)
			if _, err := engine.Select(t.Context(), "selector", req); kindOf(err) != core.ErrInvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestBadMask checks that the host takes no mask that a kernel could not trust.
func TestBadMask(t *testing.T) {
	h, engine := start(t, host.Options{})
	for _, garbage := range []string{"column", "row", "extent", "size"} {
		t.Run(garbage, func(t *testing.T) {
			_, err := engine.Select(t.Context(), "selector", request(t, h, core.Params{"garbage": garbage}))
			if kindOf(err) != core.ErrInternal || core.AsError(err).Plugin != "tested" {
				t.Errorf("got %v, want an internal error of the plugin", err)
			}
		})
	}
}

func TestSelectOnlyDoesNotAttend(t *testing.T) {
	h, engine := start(t, host.Options{})
	_, err := engine.Attend(t.Context(), "selector", request(t, h, nil))
	if kindOf(err) != core.ErrUnknownStrategy { // "custom", which the built-in plugin has
		t.Errorf("got %v", err)
	}
}

func TestLargeReport(t *testing.T) {
	h, engine := start(t, host.Options{})
	const heads = 45000 // more than 4 MiB, gRPC's own limit
	response, err := engine.Attend(t.Context(), "identity", request(t, h, core.Params{"heads": int64(heads)}))
	if err != nil {
		t.Fatal(err)
	}
	if got := response.Report.Heads; len(got) != heads || got[heads-1].Head != heads-1 {
		t.Errorf("%d heads, want %d", len(got), heads)
	}
	_, err = engine.Attend(t.Context(), "identity", request(t, h, core.Params{"heads": int64(200000)}))
	if err == nil {
		t.Error("a report beyond the limit of a message passed")
	}
	req := request(t, h, nil)
	if _, err := engine.Attend(t.Context(), "identity", req); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestConcurrentCalls(t *testing.T) {
	h, engine := start(t, host.Options{})
	var group sync.WaitGroup
	for worker := range 8 {
		shared := request(t, h, nil)
		number(shared.Query, float32(worker))
		staged := *shared
		staged.Query, staged.Output = foreign(t, 1, 4, 100, 8), foreign(t, 1, 4, 100, 8)
		number(staged.Query, float32(worker))
		group.Go(func() {
			for i := range 200 {
				req := *shared
				if i%2 == 1 {
					req = staged
				}
				req.Params = core.Params{"factor": float64(1 + i%7)}
				if _, err := engine.Attend(t.Context(), "identity", &req); err != nil {
					t.Error(err)
					return
				}
				checkIdentity(t, &req, float32(1+i%7))
			}
		})
	}
	group.Wait()
	for _, p := range h.Plugins() {
		if p.Restarts != 0 {
			t.Errorf("%+v: restarted", p)
		}
	}
}
