package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// works checks that the next good call is right.
func works(t *testing.T, h *host.Host, engine *core.Engine) {
	t.Helper()
	req := request(t, h, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // it may have to start the process
	defer cancel()
	if _, err := engine.Attend(ctx, "identity", req); err != nil {
		t.Fatalf("the next call: %v", err)
	}
	checkIdentity(t, req, 1)
}

func pid(h *host.Host, kind core.StrategyKind) int {
	for _, p := range h.Plugins() {
		if p.Kind == kind {
			return p.PID
		}
	}
	return 0
}

func TestFailures(t *testing.T) {
	for _, test := range []struct {
		behaviour string
		kind      core.ErrorKind
		message   string
		lives     bool // the process
	}{
		{"panic", core.ErrInternal, "panic: as asked", true},
		{"fail", core.ErrOutOfMemory, "no room", true},
		{"wrap", core.ErrInternal, "while testing: plain", true},
		{"die", core.ErrPluginCrashed, "killed", false},
		{"goroutine panic", core.ErrPluginCrashed, "panic: in a goroutine", false},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			h, engine := start(t, host.Options{})
			works(t, h, engine)
			before := pid(h, core.Attention)
			_, err := engine.Attend(t.Context(), "identity", request(t, h, core.Params{"behaviour": test.behaviour}))
			typed := core.AsError(err)
			if typed == nil || typed.Kind != test.kind || typed.Plugin != "tested" || typed.Strategy != "attention.identity" ||
				!strings.Contains(typed.Message, test.message) || typed.Hint == "" && test.behaviour != "wrap" {
				t.Errorf("got %#v", typed)
			}
			works(t, h, engine)
			if after := pid(h, core.Attention); (after == before) != test.lives {
				t.Errorf("process %d, before %d: want the same: %t", after, before, test.lives)
			}
		})
	}
}

func TestPrinting(t *testing.T) {
	h, engine := start(t, host.Options{})
	req := request(t, h, core.Params{"behaviour": "print"})
	if _, err := engine.Attend(t.Context(), "identity", req); err != nil {
		t.Fatal(err)
	}
	checkIdentity(t, req, 1)
}

func TestCancel(t *testing.T) {
	h, engine := start(t, host.Options{})
	works(t, h, engine)
	before := pid(h, core.Attention)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	_, err := engine.Attend(ctx, "identity", request(t, h, core.Params{"behaviour": "wait"}))
	if kindOf(err) != core.ErrCancelled {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("took %v", took)
	}
	works(t, h, engine)
	if pid(h, core.Attention) != before {
		t.Error("the process was restarted")
	}
}

func TestDeadline(t *testing.T) {
	h, engine := start(t, host.Options{CallTimeout: 200 * time.Millisecond})
	works(t, h, engine)
	began := time.Now()
	_, err := engine.Attend(context.Background(), "identity", request(t, h, core.Params{"behaviour": "wait"}))
	if kindOf(err) != core.ErrDeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took < 200*time.Millisecond || took > 1500*time.Millisecond {
		t.Errorf("took %v", took)
	}
	works(t, h, engine)
}

// cancelOnceWritten is a context that ends when the plugin has begun to write.
func cancelOnceWritten(t *testing.T, req *core.AttentionRequest) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	first := (*uint32)(req.Output.Pointer())
	go func() {
		for ctx.Err() == nil && atomic.LoadUint32(first) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	return ctx
}

// unchanged checks that nothing writes to the output any more.
func unchanged(t *testing.T, req *core.AttentionRequest) {
	t.Helper()
	clear(floats(t, req))
	time.Sleep(300 * time.Millisecond)
	for i, got := range floats(t, req) {
		if got != 0 {
			t.Fatalf("output %d became %g after the call had returned", i, got)
		}
	}
}

// TestLate checks that a call whose output the caller can see does not return
// while the plugin writes there.
func TestLate(t *testing.T) {
	h, engine := start(t, host.Options{CancelGrace: 20 * time.Second})
	works(t, h, engine)
	before := pid(h, core.Attention)
	req := request(t, h, core.Params{"behaviour": "late"})
	if _, err := engine.Attend(cancelOnceWritten(t, req), "identity", req); kindOf(err) != core.ErrCancelled {
		t.Errorf("got %v", err)
	}
	unchanged(t, req)
	if pid(h, core.Attention) != before {
		t.Error("the process was restarted")
	}
}

// TestStubborn checks that a plugin that does not let go is killed before the
// call returns.
func TestStubborn(t *testing.T) {
	h, engine := start(t, host.Options{CancelGrace: 300 * time.Millisecond})
	works(t, h, engine)
	before := pid(h, core.Attention)
	req := request(t, h, core.Params{"behaviour": "stubborn"})
	if _, err := engine.Attend(cancelOnceWritten(t, req), "identity", req); kindOf(err) != core.ErrCancelled {
		t.Errorf("got %v", err)
	}
	unchanged(t, req)
	works(t, h, engine)
	if pid(h, core.Attention) == before {
		t.Error("the process was not killed")
	}
}

// TestSetAside checks that a call returns soon when the plugin writes to memory
// of the pool alone, and that nobody gets that memory while it does.
func TestSetAside(t *testing.T) {
	const grace = 3 * time.Second
	h, engine := start(t, host.Options{CancelGrace: grace})
	works(t, h, engine)
	req := request(t, h, core.Params{"behaviour": "stubborn"})
	req.Output, req.LSE = foreign(t, 1, 4, 100, 8), nil
	live := h.Stats().Memory.Live
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	if _, err := engine.Attend(ctx, "identity", req); kindOf(err) != core.ErrDeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > grace {
		t.Errorf("took %v", took)
	}
	if got := h.Stats().Memory.Live; got != live+1 {
		t.Errorf("%d segments live, want %d: the output's is set aside", got, live+1)
	}
	unchanged(t, req)
	for limit := time.Now().Add(20 * time.Second); h.Stats().Memory.Live != live; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the memory was never given back")
		}
	}
	works(t, h, engine)
}

func floats(t *testing.T, req *core.AttentionRequest) []float32 {
	t.Helper()
	values, err := req.Output.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// TestWedged checks that a stopped process costs the call its deadline and the
// grace, no more.
func TestWedged(t *testing.T) {
	h, engine := start(t, host.Options{CancelGrace: 200 * time.Millisecond})
	works(t, h, engine)
	stop(t, pid(h, core.Attention))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := engine.Attend(ctx, "identity", request(t, h, nil)); kindOf(err) != core.ErrDeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	works(t, h, engine)
}

// stop stops a process and returns when it has stopped, which takes a moment.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		// The state is the field after the name, which is in parentheses.
		if _, rest, _ := strings.Cut(string(status), ") "); strings.HasPrefix(rest, "T") {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the process did not stop")
}

// TestKills kills the process during calls of several goroutines: every call
// is right or fails as crashed, and the next one after is right.
func TestKills(t *testing.T) {
	h, engine := start(t, host.Options{})
	for range 10 {
		works(t, h, engine)
		victim := pid(h, core.Attention)
		var dead atomic.Bool
		var group sync.WaitGroup
		for range 4 {
			req := request(t, h, nil)
			group.Go(func() {
				// One that began after the kill started the process again.
				for again := false; !again; {
					again = dead.Load()
					clear(floats(t, req))
					_, err := engine.Attend(t.Context(), "identity", req)
					if err == nil {
						checkIdentity(t, req, 1)
						continue
					}
					if kindOf(err) != core.ErrPluginCrashed {
						t.Errorf("got %v", err)
					}
					return
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		syscall.Kill(victim, syscall.SIGKILL)
		killed := time.Now()
		time.Sleep(20 * time.Millisecond)
		dead.Store(true)
		group.Wait()
		if took := time.Since(killed); took > 10*time.Second {
			t.Errorf("calls failed %v after the kill", took)
		}
	}
}

func TestClosed(t *testing.T) {
	h, engine := start(t, host.Options{})
	works(t, h, engine)
	req := request(t, h, core.Params{"behaviour": "wait"})
	failed := make(chan error, 1)
	go func() {
		_, err := engine.Attend(context.Background(), "identity", req)
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; kindOf(err) != core.ErrEngineClosed {
		t.Errorf("the call in flight: %v", err)
	}
	if _, err := engine.Attend(t.Context(), "identity", req); kindOf(err) != core.ErrEngineClosed {
		t.Errorf("a later call: %v", err)
	}
}

func TestManifests(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(dir string, m *host.Manifest)
		open   core.ErrorKind
		call   core.ErrorKind
	}{
		{"tampered", func(_ string, m *host.Manifest) { m.SHA256 = strings.Repeat("0", 64) }, "", core.ErrPluginRefused},
		{"missing", func(dir string, _ *host.Manifest) { os.Remove(dir + "/plugin") }, "", core.ErrPluginMissing},
		{"described otherwise", func(_ string, m *host.Manifest) { m.Strategies[0].Summary = "another" }, "", core.ErrPluginRefused},
		{"not served", func(_ string, m *host.Manifest) {
			m.Strategies = append(m.Strategies, info(core.Attention, "invented"))
		}, "", core.ErrPluginRefused},
		{"not listed", func(_ string, m *host.Manifest) {
			m.Strategies = slices.DeleteFunc(m.Strategies, func(i core.Info) bool { return i.Name == "selector" })
		}, "", core.ErrPluginRefused},
		{"protocol", func(_ string, m *host.Manifest) { m.Protocol = 99 }, core.ErrPluginRefused, ""},
		{"outside", func(_ string, m *host.Manifest) { m.File = "../plugin" }, core.ErrPluginRefused, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			m := manifest(t, dir)
			test.change(dir, &m)
			path := write(t, dir, m)
			if test.open != "" {
				if _, err := host.Open(t.Context(), host.Options{Manifests: []string{path}}); kindOf(err) != test.open {
					t.Errorf("open: %v", err)
				}
				h, err := host.Open(t.Context(), host.Options{Dirs: []string{dir}})
				if err != nil {
					t.Fatal(err)
				}
				defer h.Close(t.Context())
				if list := h.Plugins(); len(list) != 1 || list[0].State != host.StateRefused || list[0].Reason == "" {
					t.Errorf("plugins %+v", list)
				}
				return
			}
			h, engine := start(t, host.Options{Manifests: []string{path}})
			for range 2 {
				_, err := engine.Attend(t.Context(), "identity", request(t, h, nil))
				var typed *core.Error
				if !errors.As(err, &typed) || typed.Kind != test.call || typed.Hint == "" || typed.Plugin != "tested" {
					t.Errorf("call: %#v", err)
				}
			}
		})
	}
	if _, err := host.Open(t.Context(), host.Options{Manifests: []string{"/nowhere/x.json"}}); kindOf(err) != core.ErrPluginMissing {
		t.Errorf("no manifest: %v", err)
	}
}
