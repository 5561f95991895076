package process

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/host"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/sdk"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// hostileMode makes this test binary a plugin that breaks the contract on
// purpose. It speaks gRPC itself: the SDK would not let it.
const hostileMode = "TRIVIUM_PROCESS_TEST_HOSTILE"

func hostileInfo() core.Info {
	info := describe(core.Attention, "hostile", core.Parameter{Name: "behaviour", Type: core.String, Default: "", Doc: "what to do"})
	info.Capabilities.Attends = true
	return info
}

// hostile is what the manifest describes; it is never served by the SDK.
type hostile struct{}

func (hostile) Info() core.Info { return hostileInfo() }

func (hostile) Select(context.Context, *core.AttentionRequest) (*core.Selection, error) {
	return nil, errors.New("not by the sdk")
}

func (h hostile) Attend(context.Context, *core.AttentionRequest) (*core.AttentionResponse, error) {
	return nil, errors.New("not by the sdk")
}

func serveHostile() {
	side, err := sdk.Inherit()
	if err != nil {
		panic(err)
	}
	table, err := shm.Attach(side)
	if err != nil {
		panic(err)
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: plugins.ProtocolVersion, MagicCookieKey: plugins.CookieKey, MagicCookieValue: plugins.CookieValue,
		},
		Plugins: plugin.PluginSet{"attention": &hostileServer{table: table}},
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(o, grpc.ForceServerCodecV2(giantCodec{}), grpc.MaxSendMsgSize(math.MaxInt))...)
		},
	})
}

// giantCodec sends one message that is as long as a length can say.
type giantCodec struct{}

func (giantCodec) Name() string { return proto.Name }

func (giantCodec) Marshal(v any) (mem.BufferSlice, error) {
	if reply, ok := v.(*pb.AttendResponse); ok && reply.GetReport().GetBackend() == "4 GiB" {
		piece, giant := make([]byte, 1<<20), mem.BufferSlice{}
		for range 4095 {
			giant = append(giant, mem.SliceBuffer(piece))
		}
		return giant, nil
	}
	return encoding.GetCodecV2(proto.Name).Marshal(v)
}

func (giantCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
}

type hostileServer struct {
	plugin.NetRPCUnsupportedPlugin
	pb.UnimplementedAttentionServiceServer
	pb.UnimplementedCatalogServiceServer
	table *shm.Table
}

func (s *hostileServer) GRPCServer(_ *plugin.GRPCBroker, to *grpc.Server) error {
	pb.RegisterCatalogServiceServer(to, s)
	to.RegisterService(&grpc.ServiceDesc{
		ServiceName: "trivium.v1.AttentionService", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Attend", ServerStreams: true, Handler: s.attend}},
	}, s)
	return nil
}

func (s *hostileServer) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("not used")
}

func (s *hostileServer) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	info := hostileInfo()
	if os.Getenv(hostileMode) == "lie" {
		info.Summary = "something else"
	}
	m, err := wire.EncodeInfo(info)
	return &pb.DescribeResponse{Strategies: []*pb.StrategyInfo{m}}, err
}

// Settle lies: whatever runs, it says that it has ended. But for "deaf", which
// says nothing.
func (s *hostileServer) Settle(ctx context.Context, req *pb.SettleRequest) (*pb.SettleResponse, error) {
	return &pb.SettleResponse{}, nil
}

// attend answers as no stub would: as a stream it may send more than one reply.
func (s *hostileServer) attend(_ any, stream grpc.ServerStream) error {
	req := &pb.AttendRequest{}
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	reply := &pb.AttendResponse{Report: &pb.Report{Strategy: "attention.hostile", Backend: "test", Density: 1}}
	switch req.GetAttention().GetParams()["behaviour"].GetStringValue() {
	case "hang":
		select {}
	case "slow drip":
		for range 10_000 {
			if err := stream.SendHeader(nil); err != nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
		time.Sleep(time.Hour)
	case "4 GiB":
		reply.Report.Backend = "4 GiB"
	case "wrong shape":
		reply.Mask = &pb.BlockMask{BlockSize: 64, Heads: 3, Sequences: []*pb.BlockExtent{{QueryBlocks: 900, KeyBlocks: 900}}, Columns: 5}
	case "NaN flood":
		nan := math.NaN()
		reply.Report.Density, reply.Report.Coverage = nan, &nan
		for range 10_000 {
			reply.Report.Heads = append(reply.Report.Heads, &pb.HeadReport{Density: nan, Coverage: &nan, JsDistance: &nan})
		}
	case "double reply":
		if err := stream.SendMsg(reply); err != nil {
			return err
		}
	case "reply after cancel":
		<-stream.Context().Done()
		time.Sleep(100 * time.Millisecond)
	case "index out of range":
		s.badColumns(req)
		reply.Mask = &pb.BlockMask{BlockSize: 64, Heads: 4, Sequences: []*pb.BlockExtent{{QueryBlocks: 2, KeyBlocks: 2}}, Columns: 12}
	case "shrink a segment":
		return s.shrink()
	case "fork bomb":
		return forkBomb()
	case "thread bomb":
		threadBomb()
	case "memory bomb":
		memoryBomb()
	}
	return stream.SendMsg(reply)
}

func (s *hostileServer) badColumns(req *pb.AttendRequest) {
	view, err := s.table.Lookup(context.Background(), req.GetMaskMemory().GetSegmentId(), req.GetMaskMemory().GetGeneration(), shm.ReadWrite)
	if err != nil {
		return
	}
	defer view.Release()
	for i := range view.Bytes() {
		view.Bytes()[i] = 0xff
	}
}

// shrink truncates every descriptor that it has, so that the host would fault.
func (s *hostileServer) shrink() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	shrunk := 0
	for _, entry := range open {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd < 3 {
			continue
		}
		if unix.Ftruncate(fd, 0) == nil {
			shrunk++
		}
	}
	return fmt.Errorf("shrunk %d", shrunk)
}

func forkBomb() error {
	started := 0
	for range 1000 {
		if _, err := syscall.ForkExec("/proc/self/exe", []string{"bomb"}, nil); err == nil {
			started++
		}
	}
	return fmt.Errorf("started %d", started)
}

func threadBomb() {
	for range 5000 {
		go func() {
			runtime.LockOSThread()
			var fds [2]int
			if unix.Pipe(fds[:]) == nil {
				unix.Read(fds[0], make([]byte, 1)) // blocks its thread
			}
			select {}
		}()
	}
	time.Sleep(time.Hour)
}

func memoryBomb() {
	var hoard [][]byte
	for {
		piece := make([]byte, 64<<20)
		for i := 0; i < len(piece); i += 4096 {
			piece[i] = 1
		}
		hoard = append(hoard, piece)
		runtime.KeepAlive(hoard)
	}
}

// behaviours are what a hostile plugin does, what the caller then gets, and
// whether the process lives on.
var behaviours = []struct {
	name, does string
	deadline   time.Duration
	kinds      []core.ErrorKind
	message    string
}{
	{"hang", "hang", 200 * time.Millisecond, []core.ErrorKind{core.ErrDeadlineExceeded}, ""},
	{"slow drip", "slow drip", 200 * time.Millisecond, []core.ErrorKind{core.ErrDeadlineExceeded}, ""},
	{"4 GiB reply", "4 GiB", 0, []core.ErrorKind{core.ErrInternal, core.ErrOutOfMemory}, "larger than max"},
	{"wrong shape", "wrong shape", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
	{"NaN flood", "NaN flood", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
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

func TestHostilePlugins(t *testing.T) {
	t.Setenv(hostileMode, "1")
	h, engine := open(t, host.Options{Grant: true, Dirs: []string{
		install(t, host.Rights{MemoryMiB: 512}, sdk.Config{Strategies: []core.Strategy{hostile{}}}),
	}})
	req := attention(t, h)
	call := func(behaviour string, deadline time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), cmp(deadline, 60*time.Second))
		defer cancel()
		again := *req
		again.Params, again.WantMask = core.Params{"behaviour": behaviour}, behaviour == "wrong shape" || behaviour == "index out of range"
		_, err := engine.Attend(ctx, "hostile", &again)
		return err
	}
	if err := call("", 0); err != nil {
		t.Fatal(err)
	}
	before := resident()
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) {
			var worst time.Duration
			for range hostileRounds() {
				began := time.Now()
				err := call(b.does, b.deadline)
				if b.deadline > 0 {
					worst = max(worst, time.Since(began)-b.deadline)
				}
				typed := core.AsError(err)
				if typed == nil || !slices.Contains(b.kinds, typed.Kind) || !strings.Contains(typed.Error(), b.message) {
					t.Fatalf("got %v: want %v with %q", err, b.kinds, b.message)
				}
				if typed.Plugin != "third" || typed.Strategy != "attention.hostile" {
					t.Errorf("the error blames plugin %q, strategy %q", typed.Plugin, typed.Strategy)
				}
				if err := call("", 0); err != nil {
					t.Fatalf("the next good call: %v", err)
				}
			}
			if worst > overrun() {
				t.Errorf("%v over its deadline", worst)
			}
			t.Logf("%d times, at most %v over the deadline", hostileRounds(), worst)
		})
	}
	if grown := resident() - before; grown > 32<<20 {
		t.Errorf("the host grew by %d MiB", grown>>20)
	} else {
		t.Logf("the host grew by %d KiB", grown>>10)
	}
}

// TestThreadBomb checks the bound on threads where memory does not end them first.
func TestThreadBomb(t *testing.T) {
	t.Setenv(hostileMode, "1")
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
	for range hostileRounds() {
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
