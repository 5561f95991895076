package roundtrip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/host"
)

// pretended is an accelerator without memory: blocks are opened at addresses
// that nobody looks at.
var pretended = &accelerator{open: map[string]uintptr{}}

type accelerator struct {
	mu     sync.Mutex
	open   map[string]uintptr
	opened int
}

func (a *accelerator) Open(block tensor.Block) (uintptr, tensor.Device, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if string(block.UUID) != "the only one" {
		return 0, "", core.Errorf(core.ErrDeviceUnavailable, "no device %q", block.UUID)
	}
	if at, ok := a.open[string(block.Handle)]; ok {
		return at, "cuda:5", nil
	}
	a.opened++
	at := uintptr(a.opened) << 40
	a.open[string(block.Handle)] = at
	return at, "cuda:5", nil
}

func (a *accelerator) Close(handles [][]byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range handles {
		delete(a.open, string(h))
	}
	return nil
}

func (a *accelerator) List() []core.Device {
	return []core.Device{{Name: "cuda:5", Model: "pretended"}, {Missing: "another", Hint: "buy one"}}
}

// accelerated tells in its notes what it was given.
type accelerated struct{}

func (accelerated) Info() core.Info {
	i := info(core.Attention, "accelerated", core.Parameter{Name: "behaviour", Type: core.String, Default: "", Doc: "what to do"})
	i.Capabilities.Devices = []string{"cpu", "cuda"}
	return i
}

func (accelerated) Select(context.Context, *core.AttentionRequest) (*core.Selection, error) {
	return &core.Selection{}, nil
}

func (accelerated) Attend(_ context.Context, req *core.AttentionRequest) (*core.AttentionResponse, error) {
	if req.Params.Text("behaviour") == "lost" {
		return nil, core.Errorf(core.ErrPluginCrashed, "the device is gone")
	}
	pretended.mu.Lock()
	defer pretended.mu.Unlock()
	return &core.AttentionResponse{Report: core.Report{Notes: []string{
		fmt.Sprintf("%s %#x %#x %#x", req.Query.Device(), uintptr(req.Query.Pointer()), uintptr(req.Key.Pointer()), uintptr(req.Output.Pointer())),
		fmt.Sprintf("%+v %+v %v", *req.Ready, *req.Done, req.OmitReport),
		fmt.Sprintf("%d opened, %d open", pretended.opened, len(pretended.open)),
	}}}, nil
}

func deviceBlock(id byte, size int64) tensor.Block {
	return tensor.Block{Device: "cuda:0", UUID: []byte("the only one"), Handle: bytes.Repeat([]byte{id}, 64), Size: size}
}

func on(t *testing.T, address uintptr, shape ...int64) *tensor.Tensor {
	t.Helper()
	x, err := tensor.Borrow(*(*unsafe.Pointer)(unsafe.Pointer(&address)), tensor.BFloat16, shape, nil, "cuda:0")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func deviceRequest(t *testing.T) *core.AttentionRequest {
	return &core.AttentionRequest{
		Query: on(t, 1<<32+512, 1, 4, 10, 8), Key: on(t, 1<<33, 1, 2, 10, 8), Value: on(t, 1<<33+4096, 1, 2, 10, 8), Output: on(t, 1<<32+8192, 1, 4, 10, 8),
		Causal: true, Layer: -1, OmitReport: true,
		Ready: &tensor.Fence{Device: "cuda:0", Address: 1<<33 + 0x80000, Value: 7}, Done: &tensor.Fence{Device: "cuda:0", Address: 1<<33 + 0x80040, Value: 9},
	}
}

func TestDeviceMemoryArrives(t *testing.T) {
	memory := new(host.DeviceMemory)
	h, engine := start(t, host.Options{DeviceMemory: memory})
	memory.Share(1<<32, deviceBlock(1, 1<<20))
	memory.Share(1<<33, deviceBlock(2, 1<<20))
	for range 3 {
		response, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"cuda:5 0x10000000200 0x20000000000 0x10000002000", "{Device:cuda:5 Address:2199023779840 Value:7} {Device:cuda:5 Address:2199023779904 Value:9} true", "2 opened, 2 open"}
		if !slices.Equal(response.Report.Notes, want) {
			t.Fatalf("the plugin got %q, want %q", response.Report.Notes, want)
		}
	}
	if copied := h.Stats().BytesCopied; copied != 0 {
		t.Errorf("%d bytes were copied", copied)
	}
	h.ForgetDevice(t.Context(), [][]byte{memory.Forget(1 << 33)})
	if _, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t)); kindOf(err) != core.ErrDeviceUnavailable {
		t.Errorf("with memory that was forgotten: %v", err)
	}
	// Another block at the same address; the stale one is named.
	memory.Share(1<<33, deviceBlock(3, 1<<20))
	stale := memory.Share(1<<33-4096, deviceBlock(4, 1<<20))
	if len(stale) != 1 || stale[0][0] != 3 {
		t.Errorf("stale handles %v, want that of block 3", stale)
	}
	response, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t))
	if err != nil {
		t.Fatal(err)
	}
	if want := "3 opened, 2 open"; response.Report.Notes[2] != want {
		t.Errorf("%s, want %s", response.Report.Notes[2], want)
	}
	if checked := h.Check(t.Context()); !slices.ContainsFunc(checked, func(c host.Checked) bool {
		return len(c.Devices) == 2 && c.Devices[0].Model == "pretended" && c.Devices[1].Hint == "buy one"
	}) {
		t.Errorf("the check does not list the devices: %+v", checked)
	}
}

func TestDeviceRefusals(t *testing.T) {
	memory := new(host.DeviceMemory)
	_, engine := start(t, host.Options{DeviceMemory: memory})
	if _, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t)); kindOf(err) != core.ErrDeviceUnavailable {
		t.Errorf("memory that was not exported: %v", err)
	}
	stranger := deviceBlock(1, 1<<40)
	stranger.UUID = []byte("elsewhere")
	memory.Share(1<<32, stranger)
	if _, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t)); kindOf(err) != core.ErrDeviceUnavailable {
		t.Errorf("a device that the plugin does not have: %v", err)
	}
	if _, err := engine.Attend(t.Context(), "identity", deviceRequest(t)); kindOf(err) != core.ErrDeviceUnavailable {
		t.Errorf("a strategy of the CPU: %v", err)
	}
}

// A process that says it can serve no more is replaced, and whoever waits for
// its devices is told in between.
func TestALostProcessIsReplaced(t *testing.T) {
	memory, ended := new(host.DeviceMemory), make(chan int, 10)
	h, engine := start(t, host.Options{DeviceMemory: memory, AttentionEnded: func() { ended <- 1 }})
	memory.Share(1<<32, deviceBlock(1, 1<<34))
	pid := func() int {
		for _, p := range h.Plugins() {
			if p.Kind == core.Attention {
				return p.PID
			}
		}
		return 0
	}
	if _, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t)); err != nil {
		t.Fatal(err)
	}
	before := pid()
	lost := deviceRequest(t)
	lost.Params = core.Params{"behaviour": "lost"}
	_, err := engine.Attend(t.Context(), "accelerated", lost)
	if kindOf(err) != core.ErrPluginCrashed || !errors.Is(err, &core.Error{Kind: core.ErrPluginCrashed}) {
		t.Fatalf("error %v, want plugin_crashed", err)
	}
	if _, err := engine.Attend(t.Context(), "accelerated", deviceRequest(t)); err != nil {
		t.Fatal(err)
	}
	if after := pid(); after == before || after == 0 {
		t.Errorf("process %d after %d", after, before)
	}
	if len(ended) != 1 {
		t.Errorf("told %d times, want once", len(ended))
	}
}
