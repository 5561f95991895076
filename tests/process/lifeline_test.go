// Package process tests what a host process and its plugin processes do to each
// other when one of them ends.
package process

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/confine"
	"github.com/trivium-ml/trivium/plugins/host"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

// The tests start this test binary as their plugin and as their host.
const (
	hostMode   = "PROCESS_TEST_HOST"
	pluginMode = "TRIVIUM_PROCESS_TEST_PLUGIN"

	hostWaits = "wait"
	hostExits = "exit"
)

func TestMain(m *testing.M) {
	confine.Enter()
	sing()
	if os.Getenv(pluginMode) != "" {
		sdk.Serve(sdk.Config{Strategies: []core.Strategy{noisy{}}})
	}
	if os.Getenv(hostileMode) != "" && sdk.Hosted() {
		serveHostile()
	}
	if sdk.Hosted() {
		sdk.Serve(thirdParty())
	}
	if mode := os.Getenv(hostMode); mode != "" {
		runHost(mode)
		return
	}
	os.Exit(m.Run())
}

// noisy is a position strategy that prints to descriptor 1, as a C library
// would, and starts a helper that outlives calls.
type noisy struct{}

func (noisy) Info() core.Info {
	return core.Info{Name: "noisy", Kind: core.Position, Summary: "prints", License: "Apache-2.0", Version: "1"}
}

func (noisy) Plan(context.Context, *core.PositionRequest) (*core.PositionPlan, error) {
	if _, err := syscall.Write(1, []byte("1|1|unix|/nowhere|grpc|\n")); err != nil {
		return nil, err
	}
	fmt.Println("through os.Stdout")
	if err := exec.Command("sleep", "1000").Start(); err != nil {
		return nil, err
	}
	return &core.PositionPlan{Strategy: "noisy"}, nil
}

// runHost starts a plugin, prints its process id, and waits or exits without
// closing anything.
func runHost(mode string) {
	process, _, err := newProcess()
	if err != nil {
		panic(err)
	}
	session, err := process.Conn(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println(session.PID)
	if mode == hostWaits {
		time.Sleep(time.Hour)
	}
}

func newProcess() (*host.Process, *host.RuntimeDir, error) {
	sum, err := host.Checksum(os.Args[0])
	if err != nil {
		return nil, nil, err
	}
	dir, err := host.OpenRuntimeDir(os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	return host.NewProcess(host.Config{
		Name: "noisy", Log: logrus.NewEntry(log), Path: os.Args[0], SHA256: sum, RuntimeDir: dir.Path,
		Env: append(host.PluginEnv(os.Environ()), pluginMode+"=1", plugins.EnvKind+"="+string(core.Position)),
	}), dir, nil
}

func startProcess(t *testing.T) (*host.Process, *host.Session) {
	t.Helper()
	process, dir, err := newProcess()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Close()
		dir.Close()
	})
	session, err := process.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return process, session
}

func plan(t *testing.T, s *host.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request := &pb.PlanRequest{CallId: uint64(time.Now().UnixNano()), Strategy: "noisy", HeadDim: 2, InvFreq: []float64{1}, Length: 1}
	if _, err := pb.NewPositionServiceClient(s.Conn).Plan(ctx, request); err != nil {
		t.Fatal(err)
	}
}

// shortDir is a temporary directory that sockets can have paths in.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "rt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// gone reports whether no process has the id; a zombie counts as gone.
func gone(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}

func wantGone(t *testing.T, what string, pid int) time.Duration {
	t.Helper()
	start := time.Now()
	for !gone(pid) {
		if time.Since(start) > 2*time.Second {
			_ = syscall.Kill(pid, syscall.SIGKILL) // leave nothing behind
			t.Fatalf("%s %d is alive 2 s later", what, pid)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

func TestPluginEndsWithItsHost(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		signal     syscall.Signal
		cycles     int
	}{
		{"killed", hostWaits, syscall.SIGKILL, campaign(20, 200)},
		{"terminated", hostWaits, syscall.SIGTERM, 3},
		{"exited", hostExits, 0, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			var worst time.Duration
			base := shortDir(t)
			for range c.cycles {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), hostMode+"="+c.mode, "XDG_RUNTIME_DIR="+base)
				cmd.Stderr = os.Stderr
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(out)
				lines.Scan()
				pid, err := strconv.Atoi(lines.Text())
				if err != nil {
					t.Fatal(err)
				}
				if c.signal != 0 {
					if gone(pid) {
						t.Fatal("the plugin ended before its host")
					}
					if err := cmd.Process.Signal(c.signal); err != nil {
						t.Fatal(err)
					}
				}
				_ = cmd.Wait() // it was killed, or exited: both are meant
				worst = max(worst, wantGone(t, "plugin", pid))
			}
			t.Logf("plugin gone at most %v after its host", worst)
		})
	}
}

func TestDeadHostLeavesNoDirectory(t *testing.T) {
	base := shortDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hostMode+"="+hostExits, "XDG_RUNTIME_DIR="+base)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) != 1 {
		t.Fatalf("left by the dead host: %v, %v: want one directory to sweep", left, err)
	}
	next, err := host.OpenRuntimeDir(func(string) string { return base })
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) != 0 {
		t.Errorf("left after the next host: %v, %v", left, err)
	}
}

func TestOutputAndInterruptsDoNoHarm(t *testing.T) {
	process, session := startProcess(t)
	plan(t, session)
	if err := syscall.Kill(session.PID, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	plan(t, session)
	if s := process.Stats(); s.State != host.StateRunning || s.PID != session.PID {
		t.Errorf("after printing and an interrupt: %+v", s)
	}
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(session.PID), "comm"))
	if want := filepath.Base(os.Args[0]); err != nil || !strings.HasPrefix(want, strings.TrimSpace(string(name))) {
		t.Errorf("process name %q, %v: want the start of %q", name, err, want)
	}
}

// What a plugin started does not outlive it.
func TestHelpersEndWithThePlugin(t *testing.T) {
	_, session := startProcess(t)
	plan(t, session)
	var helpers []byte
	// The helper may have been started by any thread.
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", session.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		more, err := os.ReadFile(thread)
		if err == nil { // a thread may have ended
			helpers = append(helpers, more...)
		}
	}
	pids := strings.Fields(string(helpers))
	if len(pids) == 0 {
		t.Fatal("the helper was not found")
	}
	if err := syscall.Kill(session.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	<-session.Done()
	if d := time.Since(start); d > time.Second {
		t.Errorf("the death was noticed after %v, although a helper held the pipes", d)
	}
	for _, text := range pids {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		wantGone(t, "helper", pid)
	}
}
