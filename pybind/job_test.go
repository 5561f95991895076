package pybind

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
)

func succeed(context.Context) (string, error) { return "{}", nil }

func untilCancelled(ctx context.Context) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func TestJobEnds(t *testing.T) {
	cases := []struct {
		name    string
		work    work
		timeout time.Duration
		cancel  bool
		kind    core.ErrorKind
	}{
		{name: "result", work: succeed},
		{name: "error", work: func(context.Context) (string, error) { return "", core.Invalid("", "bad") }, kind: core.ErrInvalidArgument},
		{name: "panic", work: func(context.Context) (string, error) { panic("boom") }, kind: core.ErrInternal},
		{name: "nil map", work: func(context.Context) (string, error) { var m map[string]int; m["a"] = 1; return "", nil }, kind: core.ErrInternal},
		{name: "cancelled", work: untilCancelled, cancel: true, kind: core.ErrCancelled},
		{name: "deadline", work: untilCancelled, timeout: time.Millisecond, kind: core.ErrDeadlineExceeded},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			table := newJobTable()
			const id = 7
			if err := table.start(id, c.timeout, c.work); err != nil {
				t.Fatal(err)
			}
			if c.cancel {
				j, err := table.find(id)
				if err != nil {
					t.Fatal(err)
				}
				j.cancel()
			}
			result, err := table.wait(id, 10*time.Second)
			if c.kind == "" && (err != nil || result != "{}") {
				t.Fatalf("got %q, %v, want {}", result, err)
			}
			if c.kind != "" && !errors.Is(core.AsError(err), &core.Error{Kind: c.kind}) {
				t.Fatalf("got %v, want kind %s", err, c.kind)
			}
			if table.count() != 0 {
				t.Fatalf("%d jobs left, want 0", table.count())
			}
		})
	}
}

func TestWaitReturnsWhileTheJobRuns(t *testing.T) {
	table := newJobTable()
	const id = 7
	if err := table.start(id, 0, untilCancelled); err != nil {
		t.Fatal(err)
	}
	if err := table.start(id, 0, untilCancelled); err == nil {
		t.Fatal("two jobs have the same number")
	}
	result, err := table.wait(id, time.Millisecond)
	if result != "" || err != nil {
		t.Fatalf("got %q, %v, want an empty result", result, err)
	}
	j, err := table.find(id)
	if err != nil {
		t.Fatal(err)
	}
	j.cancel()
	if _, err := table.wait(id, 10*time.Second); err == nil {
		t.Fatal("a cancelled job ended without an error")
	}
	if _, err := table.wait(id, 0); err == nil {
		t.Fatal("a collected job was handed over twice")
	}
}

// A job that was collected or forgotten keeps neither memory nor a goroutine.
func TestJobsDoNotLeak(t *testing.T) {
	const rounds = 100_000
	before := heapInUse()
	goroutines := runtime.NumGoroutine()
	for i := range int64(rounds) {
		if _, err := Submit(i, "bridge.check", `{"echo":"0123456789"}`, 0); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := Forget(i); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if result, err := Wait(i, 10_000); err != nil || result != `"0123456789"` {
			t.Fatalf("round %d: %q, %v", i, result, err)
		}
	}
	if n := jobs.count(); n != 0 {
		t.Fatalf("%d jobs left, want 0", n)
	}
	for range 500 {
		if runtime.NumGoroutine() <= goroutines {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Fatalf("%d goroutines, %d before", n, goroutines)
	}
	if grown := int64(heapInUse()) - int64(before); grown > 4<<20 {
		t.Fatalf("the heap grew by %d bytes over %d jobs", grown, rounds)
	}
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestEncodedErrors(t *testing.T) {
	cases := []struct {
		name string
		call func() error
		want string
	}{
		{"unknown operation", func() error { _, err := Submit(1, "no.such", "{}", 0); return err },
			`TRIVIUM{"kind":"invalid_argument","message":"operation \"no.such\" is unknown"}`},
		{"negative timeout", func() error { _, err := Submit(1, "bridge.check", "{}", -1); return err },
			`TRIVIUM{"kind":"invalid_argument","message":"timeout -1 ms: want 0 or more"}`},
		{"unknown job", func() error { _, err := Wait(-5, 0); return err },
			`TRIVIUM{"kind":"invalid_argument","message":"job -5 is unknown: its result was collected or forgotten"}`},
		{"every field", func() error {
			_, err := Submit(1, "bridge.check", `{"error":"plugin_crashed","message":"m","hint":"h","plugin":"p","strategy":"s"}`, 0)
			if err != nil {
				return err
			}
			_, err = Wait(1, 10_000)
			return err
		}, `TRIVIUM{"kind":"plugin_crashed","message":"m","hint":"h","strategy":"s","plugin":"p"}`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := c.call()
			if err == nil || err.Error() != c.want {
				t.Fatalf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestForkIsRefused(t *testing.T) {
	if err := forkError(7, 7); err != nil {
		t.Fatal(err)
	}
	err := forkError(8, 7)
	if !errors.Is(core.AsError(err), &core.Error{Kind: core.ErrForkedProcess}) {
		t.Fatalf("got %v, want a forked_process error", err)
	}
	if text := encodeError(err).Error(); !strings.Contains(text, `"kind":"forked_process"`) {
		t.Fatal(text)
	}
}
