package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/shm"
)

// The tests start this test binary as their plugin: what it does then.
const (
	testMode  = "TRIVIUM_HOST_TEST_PLUGIN"
	doMethod  = "/trivium.test.Commands/Do"
	modeServe = "serve"
	modeExit  = "exit before the handshake"
	modeHang  = "hang before the handshake"
	modeOld   = "speak an older protocol"
	modeNoise = "print first"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(testMode); mode != "" {
		runTestPlugin(mode)
		return
	}
	os.Exit(m.Run())
}

func runTestPlugin(mode string) {
	version := uint(plugins.ProtocolVersion)
	switch mode {
	case modeExit:
		fmt.Fprintln(os.Stderr, "no licence file")
		os.Exit(3)
	case modeHang:
		time.Sleep(time.Hour)
	case modeOld:
		version = 0
	case modeNoise:
		fmt.Println("1|1|unix|/nowhere|grpc|")
	}
	os.Stdout = os.NewFile(plugins.HandshakeFD, "handshake")
	table, err := shm.Attach(os.NewFile(plugins.SideChannelFD, "side channel"))
	if err != nil {
		panic(err)
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: version,
			MagicCookieKey: plugins.CookieKey, MagicCookieValue: plugins.CookieValue},
		Plugins:    plugin.PluginSet{"commands": &commands{table: table}},
		GRPCServer: plugin.DefaultGRPCServer,
	})
}

// commands serves one method that obeys a line of text.
type commands struct {
	plugin.NetRPCUnsupportedPlugin
	table *shm.Table
}

func (c *commands) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "trivium.test.Commands",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Do", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			out, err := c.do(ctx, strings.Fields(in.Value))
			return wrapperspb.String(out), err
		}}},
	}, c)
	return nil
}

func (c *commands) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("not used")
}

func (c *commands) do(ctx context.Context, words []string) (string, error) {
	switch words[0] {
	case "echo":
		return words[1], nil
	case "fail":
		return "", errors.New("the plugin's own error")
	case "sleep":
		time.Sleep(time.Hour)
	case "panic":
		go func() { panic("boom in a goroutine") }()
		time.Sleep(time.Hour)
	case "exit":
		fmt.Fprintln(os.Stderr, "giving up") // after the handshake: go-plugin's stream, not fd 2
		os.NewFile(2, "stderr").WriteString("giving up for good\n")
		os.Exit(4)
	case "environment":
		return strings.Join(os.Environ(), "\n"), nil
	case "descriptors":
		return describeDescriptors()
	case "sum":
		id, _ := strconv.ParseUint(words[1], 10, 64)
		v, err := c.table.Lookup(ctx, id, 1, shm.ReadOnly)
		if err != nil {
			return "", err
		}
		defer v.Release()
		sum := 0
		for _, b := range v.Bytes() {
			sum += int(b)
		}
		return strconv.Itoa(sum), nil
	}
	return "", fmt.Errorf("unknown command %q", words)
}

func describeDescriptors() (string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return "", err
	}
	var lines []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil { // the directory itself, closed by now
			continue
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			return "", err
		}
		flags, err := unix.FcntlInt(uintptr(number), unix.F_GETFL, 0)
		if err != nil {
			return "", err
		}
		if number <= 2 && flags&unix.O_NONBLOCK != 0 {
			target += " non-blocking"
		}
		lines = append(lines, e.Name()+" "+target)
	}
	return strings.Join(lines, "\n"), nil
}

// newTestConfig runs this test binary in mode.
func newTestConfig(t testing.TB, mode string) Config {
	t.Helper()
	sum, err := Checksum(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, err := OpenRuntimeDir(func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	t.Cleanup(func() {
		if left, _ := os.ReadDir(dir.Path); len(left) != 0 {
			t.Errorf("left in the runtime directory: %v", left)
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return Config{
		Name: "test", Path: os.Args[0], SHA256: sum, RuntimeDir: dir.Path, Log: logrus.NewEntry(log),
		Env: append(PluginEnv(os.Environ()), testMode+"="+mode),
	}
}

func newTestProcess(t testing.TB, c Config) *Process {
	t.Helper()
	p := NewProcess(c)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// do sends one command to p, starting it if need be.
func do(ctx context.Context, p *Process, command string) (string, error) {
	s, err := p.Conn(ctx)
	if err != nil {
		return "", err
	}
	reply := new(wrapperspb.StringValue)
	err = s.Conn.Invoke(ctx, doMethod, wrapperspb.String(command), reply)
	return reply.Value, err
}

func mustEcho(t testing.TB, p *Process) {
	t.Helper()
	if reply, err := do(within(t, 20*time.Second), p, "echo hello"); err != nil || reply != "hello" {
		t.Fatalf("echo: %q, %v", reply, err)
	}
}

// wantKind checks an error's kind and that its message contains text.
func wantKind(t testing.TB, err error, kind core.ErrorKind, text string) {
	t.Helper()
	var typed *core.Error
	if !errors.As(err, &typed) || typed.Kind != kind || !strings.Contains(typed.Message, text) {
		t.Errorf("got %v: want kind %s and %q", err, kind, text)
		return
	}
	if typed.Plugin != "test" {
		t.Errorf("error of plugin %q: want test", typed.Plugin)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// settled is a count that has not changed for a quarter of a second.
func settled(count func() int) int {
	const unchanged = 25
	last := count()
	for same := 0; same < unchanged; same++ {
		time.Sleep(10 * time.Millisecond)
		if now := count(); now != last {
			last, same = now, 0
		}
	}
	return last
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("still not true after 10 s: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}
