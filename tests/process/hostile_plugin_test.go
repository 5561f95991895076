package process

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
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
	if os.Getenv(hostileMode) == "lane" {
		go serveHostileLane(&hostileServer{table: table})
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
	reply, err := s.behave(req)
	if err != nil {
		return err
	}
	switch behaviourOf(req) {
	case "slow drip":
		for range 10_000 {
			if err := stream.SendHeader(nil); err != nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
		time.Sleep(time.Hour)
	case "4 GiB":
		reply.Report.Backend = "4 GiB"
	case "double reply":
		if err := stream.SendMsg(reply); err != nil {
			return err
		}
	case "reply after cancel":
		<-stream.Context().Done()
		time.Sleep(100 * time.Millisecond)
	}
	return stream.SendMsg(reply)
}

func behaviourOf(req *pb.AttendRequest) string {
	return req.GetAttention().GetParams()["behaviour"].GetStringValue()
}

// behave does what is the same whichever way the call came, and gives a good
// reply where the behaviour is another.
func (s *hostileServer) behave(req *pb.AttendRequest) (*pb.AttendResponse, error) {
	attention := req.GetAttention()
	reply := &pb.AttendResponse{Report: &pb.Report{Strategy: "attention.hostile", Backend: "gRPC", Density: 1}}
	s.fill(attention.GetOutput(), 0, 1<<30)
	s.fill(attention.GetLse(), 0, 1<<30)
	switch behaviourOf(req) {
	case "hang":
		select {}
	case "wrong shape":
		reply.Mask = &pb.BlockMask{BlockSize: 64, Heads: 3, Sequences: []*pb.BlockExtent{{QueryBlocks: 900, KeyBlocks: 900}}, Columns: 5}
	case "NaN flood":
		nan := math.NaN()
		reply.Report.Density, reply.Report.Coverage = nan, &nan
		for range 10_000 {
			reply.Report.Heads = append(reply.Report.Heads, &pb.HeadReport{Density: nan, Coverage: &nan, JsDistance: &nan})
		}
	case "NaN outputs":
		s.fill(attention.GetOutput(), 0xff, 1<<30)
	case "one NaN output":
		s.fill(attention.GetOutput(), 0xff, 4)
	case "NaN lse":
		s.fill(attention.GetLse(), 0xff, 4)
	case "index out of range":
		s.badColumns(req)
		reply.Mask = &pb.BlockMask{BlockSize: 64, Heads: 4, Sequences: []*pb.BlockExtent{{QueryBlocks: 2, KeyBlocks: 2}}, Columns: 12}
	case "shrink a segment":
		return nil, s.shrink()
	case "fork bomb":
		return nil, forkBomb()
	case "thread bomb":
		threadBomb()
	case "memory bomb":
		memoryBomb()
	}
	return reply, nil
}

// fill writes to the last bytes of a tensor without gaps, at most so many.
func (s *hostileServer) fill(t *pb.TensorRef, value byte, most int64) {
	view, err := s.table.Lookup(context.Background(), t.GetSegmentId(), t.GetGeneration(), shm.ReadWrite)
	if err != nil {
		return
	}
	defer view.Release()
	size := int64(4) // of a float32
	for _, n := range t.GetShape() {
		size *= n
	}
	part := view.Bytes()[t.GetOffset():][:size]
	for i := max(0, size-most); i < size; i++ {
		part[i] = value
	}
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
