package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/shm"
)

func TestStartsOnceAndLazily(t *testing.T) {
	p := newTestProcess(t, newTestConfig(t, modeServe))
	if s := p.Stats(); s != (ProcessStats{Name: "test", State: StateIdle}) {
		t.Errorf("before the first call: %+v", s)
	}
	var group sync.WaitGroup
	sessions := make([]*Session, 8)
	for i := range sessions {
		group.Go(func() {
			var err error
			if sessions[i], err = p.Conn(within(t, 20*time.Second)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, s := range sessions {
		if s != sessions[0] {
			t.Fatal("concurrent first calls started more than one process")
		}
	}
	mustEcho(t, p)
	if s := p.Stats(); s.State != StateRunning || s.PID != sessions[0].PID || s.Restarts != 0 {
		t.Errorf("after the first call: %+v", s)
	}
	if _, err := do(within(t, 10*time.Second), p, "fail"); err == nil || !strings.Contains(err.Error(), "the plugin's own error") {
		t.Errorf("the plugin's own error became %v", err)
	}
}

func TestSharedMemoryReachesThePlugin(t *testing.T) {
	p := newTestProcess(t, newTestConfig(t, modeServe))
	s, err := p.Conn(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := shm.NewPool(shm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	segment, err := pool.Get(1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Put(segment)
	segment.Bytes()[0], segment.Bytes()[segment.Size()-1] = 40, 2
	if err := s.Peer.Ensure(t.Context(), segment); err != nil {
		t.Fatal(err)
	}
	if sum, err := do(within(t, 10*time.Second), p, "sum 1"); err != nil || sum != "42" {
		t.Errorf("sum %q, %v: want 42", sum, err)
	}
}

func TestPluginInheritsOnlyWhatItNeeds(t *testing.T) {
	t.Setenv("SECRET_TOKEN", "hunter2")
	c := newTestConfig(t, modeServe)
	p := newTestProcess(t, c)
	environment, err := do(within(t, 20*time.Second), p, "environment")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(environment, "hunter2") {
		t.Error("the plugin sees the host's other variables")
	}
	if !strings.Contains(environment, plugins.EnvPath+"="+c.Path+"\n") && !strings.HasSuffix(environment, plugins.EnvPath+"="+c.Path) {
		t.Errorf("%s missing in %s", plugins.EnvPath, environment)
	}
	descriptors, err := do(within(t, 10*time.Second), p, "descriptors")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(descriptors, "\n")
	byNumber := map[string]string{}
	for _, line := range lines {
		number, target, _ := strings.Cut(line, " ")
		byNumber[number] = target
		if strings.HasPrefix(target, "/memfd:") || strings.HasPrefix(target, filepath.Dir(os.Args[0])) {
			t.Errorf("inherited descriptor %s", line)
		}
	}
	if byNumber["0"] != "/dev/null" {
		t.Errorf("standard input is %s: want /dev/null", byNumber["0"])
	}
	if byNumber["1"] != byNumber["2"] || !strings.HasPrefix(byNumber["1"], "pipe:") || strings.Contains(byNumber["1"], "non-blocking") {
		t.Errorf("standard output is %s, standard error %s: want one pipe that blocks", byNumber["1"], byNumber["2"])
	}
	s, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if group, err := unix.Getpgid(s.PID); err != nil || group != s.PID {
		t.Errorf("process group %d, %v: want its own, %d", group, err, s.PID)
	}
}

func TestKilledInACall(t *testing.T) {
	p := newTestProcess(t, newTestConfig(t, modeServe))
	var delays []time.Duration
	var files, goroutines int
	const warmUp, cycles = 3, 50
	for i := range warmUp + cycles {
		s, err := p.Conn(within(t, 20*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		mustEcho(t, p)
		failed := make(chan error, 1)
		go func() {
			_, err := do(within(t, 20*time.Second), p, "sleep")
			failed <- err
		}()
		time.Sleep(5 * time.Millisecond)
		killed := time.Now()
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		err = <-failed
		delays = append(delays, time.Since(killed))
		wantKind(t, err, core.ErrPluginCrashed, "") // the cause too, unless a busy machine reports the death late
		<-s.Done()
		wantKind(t, s.Err(), core.ErrPluginCrashed, "signal: killed")
		mustEcho(t, p)
		<-s.cleaned
		if i == warmUp-1 {
			// A session that has just answered still starts some of its own.
			files, goroutines = settled(func() int { return openFiles(t) }), settled(runtime.NumGoroutine)
		}
	}
	slices.Sort(delays)
	usual, worst := delays[len(delays)*9/10], delays[len(delays)-1]
	t.Logf("error after the kill: median %v, nine of ten within %v, slowest of %d %v", delays[len(delays)/2], usual, len(delays), worst)
	if limit := 2 * time.Second * raceFactor; worst > limit { // far below the call's deadline; how fast it is, the log says
		t.Errorf("an error %v after the kill: want it within %v", worst, limit)
	}
	if s := p.Stats(); s.Restarts != warmUp+cycles {
		t.Errorf("%d restarts: want %d", s.Restarts, warmUp+cycles)
	}
	eventually(t, "descriptors are as many as before", func() bool { return openFiles(t) <= files })
	eventually(t, "goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestCrashSaysWhy(t *testing.T) {
	for _, c := range []struct{ name, command, want string }{
		{"panic", "panic", "panic: boom in a goroutine"},
		{"exit", "exit", "giving up for good"},
		{"exit status", "exit", "exit status 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newTestProcess(t, newTestConfig(t, modeServe))
			_, err := do(within(t, 20*time.Second), p, c.command)
			wantKind(t, err, core.ErrPluginCrashed, c.want)
			if s := p.Stats(); s.State != StateCrashed || s.PID != 0 {
				t.Errorf("stats %+v: want crashed", s)
			}
			mustEcho(t, p)
		})
	}
}

func TestBreaker(t *testing.T) {
	p := newTestProcess(t, newTestConfig(t, modeServe))
	for range breakerCrashes {
		_, err := do(within(t, 20*time.Second), p, "panic")
		wantKind(t, err, core.ErrPluginCrashed, "boom")
	}
	_, err := do(within(t, 20*time.Second), p, "echo hello")
	wantKind(t, err, core.ErrPluginRefused, "boom")
	if s := p.Stats(); s.State != StateRefused {
		t.Errorf("stats %+v: want refused", s)
	}
}

func TestBreakerWindow(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	var b breaker
	b.crashed(at(0), false)
	b.crashed(at(10), false)
	if w := b.wait(at(11)); w != 0 {
		t.Errorf("after two crashes: wait %v", w)
	}
	b.crashed(at(20), false)
	if w := b.wait(at(21)); w != 39*time.Second {
		t.Errorf("after three crashes: wait %v: want 39s", w)
	}
	if w := b.wait(at(60)); w != 0 {
		t.Errorf("a minute later: wait %v", w)
	}
	b.crashed(at(61), false)
	if w := b.wait(at(61)); w != 9*time.Second {
		t.Errorf("after the fourth: wait %v: want 9s, from the second", w)
	}
	b.crashed(at(62), true)
	if w := b.wait(at(62)); w != 0 {
		t.Errorf("after a crash of a process that had served: wait %v", w)
	}
}

func TestStoppedPlugin(t *testing.T) {
	p := newTestProcess(t, newTestConfig(t, modeServe))
	s, err := p.Conn(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	mustEcho(t, p)
	if err := syscall.Kill(s.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process has stopped", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
		return err == nil && strings.Contains(string(status), ") T ")
	})
	start := time.Now()
	_, err = do(within(t, 100*time.Millisecond), p, "echo hello")
	wantKind(t, err, core.ErrDeadlineExceeded, "did not answer")
	if d := time.Since(start); d > 2*time.Second*raceFactor {
		t.Errorf("deadline of 100ms seen after %v", d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err = do(ctx, p, "echo hello")
	wantKind(t, err, core.ErrCancelled, "cancelled")

	start = time.Now()
	p.Close()
	if d := time.Since(start); d < gracePeriod || d > gracePeriod+500*time.Millisecond*raceFactor {
		t.Errorf("close took %v: want about %v", d, gracePeriod)
	}
	if err := syscall.Kill(s.PID, 0); err != syscall.ESRCH {
		t.Errorf("process after close: %v: want no such process", err)
	}
}

func TestClose(t *testing.T) {
	p := NewProcess(newTestConfig(t, modeServe))
	mustEcho(t, p)
	s, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := do(within(t, 20*time.Second), p, "sleep")
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() { p.Close() })
	}
	group.Wait()
	if err := syscall.Kill(s.PID, 0); err != syscall.ESRCH {
		t.Errorf("process after close: %v: want no such process", err)
	}
	wantKind(t, <-failed, core.ErrEngineClosed, "stopped")
	if err := p.Close(); err != nil {
		t.Errorf("another close: %v", err)
	}
	_, err = p.Conn(t.Context())
	wantKind(t, err, core.ErrEngineClosed, "closed")
}

func TestCloseWhileStarting(t *testing.T) {
	p := NewProcess(newTestConfig(t, modeHang))
	failed := make(chan error, 1)
	go func() {
		_, err := p.Conn(t.Context())
		failed <- err
	}()
	eventually(t, "starting", func() bool { return p.Stats().State == StateStarting })
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	p.Close()
	if d := time.Since(start); d > time.Second*raceFactor {
		t.Errorf("close took %v", d)
	}
	wantKind(t, <-failed, core.ErrEngineClosed, "closed")
}

func TestCannotStart(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tampered := func(t *testing.T) string {
		b, err := os.ReadFile(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		return file("tampered", string(b))
	}
	checksum := func(t *testing.T, c *Config) {
		var err error
		if c.SHA256, err = Checksum(c.Path); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, mode string
		change     func(*testing.T, *Config)
		kind       core.ErrorKind
		text       string
	}{
		{"missing", modeServe, func(t *testing.T, c *Config) { c.Path = filepath.Join(dir, "nothing") }, core.ErrPluginMissing, "does not exist"},
		{"tampered", modeServe, func(t *testing.T, c *Config) { c.Path = tampered(t) }, core.ErrPluginRefused, "SHA-256"},
		{"no checksum", modeServe, func(t *testing.T, c *Config) { c.SHA256 = "" }, core.ErrPluginRefused, "SHA-256"},
		{"directory", modeServe, func(t *testing.T, c *Config) { c.Path = dir }, core.ErrPluginRefused, "read"},
		{"script", modeServe, func(t *testing.T, c *Config) { c.Path = file("script", "#!/bin/sh\n"); checksum(t, c) }, core.ErrPluginRefused, "ELF"},
		{"other machine", modeServe, func(t *testing.T, c *Config) { c.Path = file("elf", "\x7fELF\x02\x01\x01"); checksum(t, c) }, core.ErrPluginRefused, "cannot be executed"},
		{"exits", modeExit, func(*testing.T, *Config) {}, core.ErrPluginCrashed, "no licence file"},
		{"exit status", modeExit, func(*testing.T, *Config) {}, core.ErrPluginCrashed, "exit status 3"},
		{"hangs", modeHang, func(t *testing.T, c *Config) { c.StartTimeout = 300 * time.Millisecond }, core.ErrDeadlineExceeded, "300ms"},
		{"older protocol", modeOld, func(*testing.T, *Config) {}, core.ErrPluginRefused, "incompatible API version"},
		{"no runtime directory", modeServe, func(t *testing.T, c *Config) { c.RuntimeDir = filepath.Join(dir, "nothing") }, core.ErrPluginRefused, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := newTestConfig(t, c.mode)
			c.change(t, &config)
			p := newTestProcess(t, config)
			files := openFiles(t)
			_, err := do(within(t, 20*time.Second), p, "echo hello")
			wantKind(t, err, c.kind, c.text)
			if typed := core.AsError(err); typed.Hint == "" && c.kind != core.ErrDeadlineExceeded {
				t.Errorf("no hint in %v", err)
			}
			eventually(t, "descriptors are closed", func() bool { return openFiles(t) <= files })
		})
	}
}

func TestStartsAgainOnceRepaired(t *testing.T) {
	c := newTestConfig(t, modeServe)
	right := c.SHA256
	c.SHA256 = strings.Repeat("0", 64)
	p := newTestProcess(t, c)
	for range 2 * breakerCrashes { // refusals are no crashes
		_, err := do(within(t, 20*time.Second), p, "echo hello")
		wantKind(t, err, core.ErrPluginRefused, "SHA-256")
	}
	p.config.SHA256 = right
	mustEcho(t, p)
}

// What is printed before the handshake, even something that looks like one, goes to the log.
func TestNoiseBeforeTheHandshake(t *testing.T) {
	mustEcho(t, newTestProcess(t, newTestConfig(t, modeNoise)))
}

func BenchmarkCall(b *testing.B) {
	p := newTestProcess(b, newTestConfig(b, modeServe))
	mustEcho(b, p)
	for b.Loop() {
		if _, err := do(b.Context(), p, "echo hello"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	c := newTestConfig(b, modeServe)
	for b.Loop() {
		p := NewProcess(c)
		mustEcho(b, p)
		p.Close()
	}
}
