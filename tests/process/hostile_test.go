package process

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/host"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

type behaviour struct {
	name, does string
	deadline   time.Duration
	kinds      []core.ErrorKind
	message    string
}

// behaviours are what a hostile plugin does, what the caller then gets, and
// whether the process lives on.
var behaviours = []behaviour{
	{"hang", "hang", 200 * time.Millisecond, []core.ErrorKind{core.ErrDeadlineExceeded}, ""},
	{"slow drip", "slow drip", 200 * time.Millisecond, []core.ErrorKind{core.ErrDeadlineExceeded}, ""},
	{"4 GiB reply", "4 GiB", 0, []core.ErrorKind{core.ErrInternal, core.ErrOutOfMemory}, "larger than max"},
	{"wrong shape", "wrong shape", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
	{"NaN flood", "NaN flood", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
	{"NaN outputs", "NaN outputs", 0, []core.ErrorKind{core.ErrInternal}, "output that is not a number"},
	{"one NaN output", "one NaN output", 0, []core.ErrorKind{core.ErrInternal}, "output that is not a number"},
	{"NaN lse", "NaN lse", 0, []core.ErrorKind{core.ErrInternal}, "lse that is not a number"},
	{"double reply", "double reply", 0, []core.ErrorKind{core.ErrInternal}, ""},
	{"reply after cancel", "reply after cancel", 100 * time.Millisecond, []core.ErrorKind{core.ErrDeadlineExceeded}, ""},
	{"index out of range", "index out of range", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
	{"shrink a segment", "shrink a segment", 0, []core.ErrorKind{core.ErrInternal}, "shrunk 0"},
	{"fork bomb", "fork bomb", 0, []core.ErrorKind{core.ErrInternal}, "started 0"},
	{"thread bomb", "thread bomb", 0, []core.ErrorKind{core.ErrPluginCrashed}, ""},
	{"memory bomb", "memory bomb", 0, []core.ErrorKind{core.ErrPluginCrashed}, "memory"},
}

// hostileRounds is how often each behaviour is tried: 20 in a campaign.
func hostileRounds() int { return campaign(2, 20) }

// overrun is how long a call may take beyond its deadline: in a campaign, which
// has the machine to itself.
func overrun() time.Duration {
	if campaign(0, 100) == 100 {
		return 500 * time.Millisecond
	}
	return 5 * time.Second
}

// campaign is a small number, or the full one when TRIVIUM_CAMPAIGN is set: all
// of it, or as many percent as it says.
func campaign(small, full int) int {
	percent, err := strconv.Atoi(os.Getenv("TRIVIUM_CAMPAIGN"))
	switch {
	case os.Getenv("TRIVIUM_CAMPAIGN") == "":
		return small
	case err != nil || percent <= 1:
		return full
	}
	return max(small, full*percent/100)
}

// hostileEngine has the hostile plugin, which serves in one way or another.
func hostileEngine(t *testing.T, mode string) (*host.Host, *core.Engine, *core.AttentionRequest) {
	t.Helper()
	t.Setenv(hostileMode, mode)
	h, engine := open(t, host.Options{Grant: true, Dirs: []string{
		install(t, host.Rights{MemoryMiB: 512}, sdk.Config{Strategies: []core.Strategy{hostile{}}}),
	}})
	return h, engine, attention(t, h)
}

// callHostile asks for a behaviour; "" is good.
func callHostile(t *testing.T, engine *core.Engine, req *core.AttentionRequest, behaviour string, deadline time.Duration) (*core.AttentionResponse, error) {
	ctx, cancel := context.WithTimeout(t.Context(), cmp(deadline, 60*time.Second))
	defer cancel()
	again := *req
	again.Params, again.WantMask = core.Params{"behaviour": behaviour}, behaviour == "wrong shape" || behaviour == "index out of range"
	return engine.Attend(ctx, "hostile", &again)
}

// try checks one round of a behaviour, and gives by how much it overran.
func (b behaviour) try(t *testing.T, engine *core.Engine, req *core.AttentionRequest) (over time.Duration) {
	t.Helper()
	began := time.Now()
	_, err := callHostile(t, engine, req, b.does, b.deadline)
	if b.deadline > 0 {
		over = time.Since(began) - b.deadline
	}
	typed := core.AsError(err)
	if typed == nil || !slices.Contains(b.kinds, typed.Kind) || !strings.Contains(typed.Error(), b.message) {
		t.Fatalf("got %v: want %v with %q", err, b.kinds, b.message)
	}
	if typed.Plugin != "third" || typed.Strategy != "attention.hostile" {
		t.Errorf("the error blames plugin %q, strategy %q", typed.Plugin, typed.Strategy)
	}
	return over
}

func checkOverrun(t *testing.T, worst time.Duration) {
	t.Helper()
	if worst > overrun() {
		t.Errorf("%v over its deadline", worst)
	}
	t.Logf("%d times, at most %v over the deadline", hostileRounds(), worst)
}

func checkGrowth(t *testing.T, before int64) {
	t.Helper()
	grown := resident() - before
	if grown > 32<<20 {
		t.Errorf("the host grew by %d MiB", grown>>20)
	}
	t.Logf("the host grew by %d KiB", grown>>10)
}

func TestHostilePlugins(t *testing.T) {
	_, engine, req := hostileEngine(t, "gRPC")
	good := func(t *testing.T) {
		t.Helper()
		if _, err := callHostile(t, engine, req, "", 0); err != nil {
			t.Fatalf("a good call: %v", err)
		}
	}
	good(t)
	before := resident()
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) {
			var worst time.Duration
			for range hostileRounds() {
				worst = max(worst, b.try(t, engine, req))
				good(t)
			}
			checkOverrun(t, worst)
		})
	}
	checkGrowth(t, before)
}

// TestNaNOfTheCaller checks that NaN is let through where it comes from the inputs.
func TestNaNOfTheCaller(t *testing.T) {
	_, engine, req := hostileEngine(t, "gRPC")
	for name, x := range map[string]*tensor.Tensor{"query": req.Query, "key": req.Key, "value": req.Value} {
		values := floats(t, x)
		values[len(values)/2] = float32(math.NaN())
		if _, err := callHostile(t, engine, req, "one NaN output", 0); err != nil {
			t.Errorf("%s has a NaN: %v", name, err)
		}
		values[len(values)/2] = 0
		if _, err := callHostile(t, engine, req, "one NaN output", 0); core.AsError(err) == nil {
			t.Errorf("%s has no NaN, and one came out", name)
		}
	}
}

// TestThreadBomb checks the bound on threads where memory does not end them first.
func TestThreadBomb(t *testing.T) {
	t.Setenv(hostileMode, "gRPC")
	h, engine := open(t, host.Options{Grant: true, Dirs: []string{
		install(t, host.Rights{MemoryMiB: 1 << 20}, sdk.Config{Strategies: []core.Strategy{hostile{}}}),
	}})
	req := attention(t, h)
	req.Params = core.Params{"behaviour": "thread bomb"}
	_, err := engine.Attend(t.Context(), "hostile", req)
	if e := core.AsError(err); e == nil || e.Kind != core.ErrPluginCrashed || !strings.Contains(e.Message, "threads, and may run") {
		t.Errorf("got %v", err)
	}
}

func TestLyingPlugin(t *testing.T) {
	t.Setenv(hostileMode, "lie")
	for range 20 {
		h, engine := open(t, host.Options{Dirs: []string{install(t, host.Rights{}, sdk.Config{Strategies: []core.Strategy{hostile{}}})}})
		for range 2 {
			_, err := engine.Attend(t.Context(), "hostile", attention(t, h))
			if e := core.AsError(err); e == nil || e.Kind != core.ErrPluginRefused {
				t.Fatalf("got %v", err)
			}
		}
	}
}

func cmp(a, b time.Duration) time.Duration {
	if a != 0 {
		return a
	}
	return b
}

// resident is the memory of this process, after what can go has gone.
func resident() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	total, _ := strconv.ParseInt(fields[1], 10, 64)
	return total * int64(os.Getpagesize())
}

// attention is a small request on memory of the pool.
func attention(t *testing.T, h *host.Host) *core.AttentionRequest {
	t.Helper()
	shared := func(shape ...int64) *tensor.Tensor {
		size, err := tensor.Span(tensor.Float32, shape, tensor.RowMajor(shape))
		if err != nil {
			t.Fatal(err)
		}
		segment, err := h.Pool().Get(int(size))
		if err != nil {
			t.Fatal(err)
		}
		x, err := tensor.Borrow(unsafe.Pointer(unsafe.SliceData(segment.Bytes())), tensor.Float32, shape, nil, tensor.CPU)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			x.Release()
			if err := h.Pool().Put(segment); err != nil {
				t.Error(err)
			}
		})
		return x
	}
	return &core.AttentionRequest{
		Query: shared(1, 4, 100, 8), Key: shared(1, 2, 100, 8), Value: shared(1, 2, 100, 8), Output: shared(1, 4, 100, 8), LSE: shared(1, 4, 100),
		Causal: true, Layer: -1,
	}
}
