package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// counting selects everything; it waits for ctx when asked, and counts.
type counting struct {
	mu      sync.Mutex
	begun   chan struct{}
	running int
}

func (*counting) Info() core.Info {
	return core.Info{Name: "counting", Kind: core.Attention, Parameters: []core.Parameter{{Name: "wait", Type: core.Bool, Default: false}}}
}

func (c *counting) Select(ctx context.Context, req *core.AttentionRequest) (*core.Selection, error) {
	c.mu.Lock()
	c.running++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.running--
		c.mu.Unlock()
	}()
	if req.Params.Bool("wait") {
		c.begun <- struct{}{}
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
	}
	return &core.Selection{Reason: "asked"}, nil
}

// kernel notes what it was told to attend to.
type kernel struct{ selections chan *core.Selection }

func (k kernel) Attend(_ context.Context, _ *core.AttentionRequest, s *core.Selection) (*core.AttentionResponse, error) {
	k.selections <- s
	return &core.AttentionResponse{}, nil
}

// hosted is a server and what a host has of it.
type hosted struct {
	conn    *grpc.ClientConn
	peer    *shm.Peer
	segment *shm.Segment
}

func serveHere(t *testing.T, c Config) hosted {
	t.Helper()
	peer, child, err := shm.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	table, err := shm.Attach(child)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := shm.NewPool(shm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	segment, err := pool.Get(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	if err := peer.Ensure(t.Context(), segment); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(c, core.Attention, table, hclog.New(&hclog.LoggerOptions{Output: io.Discard}))
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(s.options()...)
	s.register(server)
	go server.Serve(listener)
	conn, err := grpc.NewClient("passthrough:///plugin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		peer.Close()
		table.Close()
		if err := pool.Put(segment); err != nil {
			t.Error(err)
		}
		pool.Close()
	})
	return hosted{conn: conn, peer: peer, segment: segment}
}

func (h hosted) ref(offset int64, shape ...int64) *pb.TensorRef {
	return &pb.TensorRef{
		SegmentId: h.segment.ID(), Generation: h.segment.Generation(), Offset: offset, Dtype: pb.Dtype_DTYPE_FLOAT32,
		Shape: shape, Strides: tensor.RowMajor(shape), Device: "cpu",
	}
}

func (h hosted) attention(params core.Params) *pb.AttentionRequest {
	values, err := wire.EncodeParams(params)
	if err != nil {
		panic(err)
	}
	return &pb.AttentionRequest{
		Query: h.ref(0, 1, 2, 40, 8), Key: h.ref(4096, 1, 1, 40, 8), Value: h.ref(8192, 1, 1, 40, 8),
		Output: h.ref(16384, 1, 2, 40, 8), Lse: h.ref(32768, 1, 2, 40), Causal: true, Params: values,
	}
}

func kindOf(err error) core.ErrorKind {
	if answer, ok := wire.DecodeError(err); ok {
		return answer.Kind
	}
	return ""
}

func TestHostileCalls(t *testing.T) {
	h := serveHere(t, Config{Strategies: []core.Strategy{&counting{}}})
	client := pb.NewAttentionServiceClient(h.conn)
	id := uint64(0)
	for _, test := range []struct {
		name  string
		spoil func(*pb.AttendRequest)
		want  core.ErrorKind
	}{
		{"no kernel", func(*pb.AttendRequest) {}, core.ErrUnsupported},
		{"no id", func(m *pb.AttendRequest) { m.CallId = 0 }, core.ErrInvalidArgument},
		{"no strategy", func(m *pb.AttendRequest) { m.Strategy = "other" }, core.ErrUnknownStrategy},
		{"no request", func(m *pb.AttendRequest) { m.Attention = nil }, core.ErrInvalidArgument},
		{"no output", func(m *pb.AttendRequest) { m.Attention.Output = nil }, core.ErrInvalidArgument},
		{"another output", func(m *pb.AttendRequest) { m.Attention.Output = h.ref(0, 1, 2, 40, 4) }, core.ErrInvalidArgument},
		{"another lse", func(m *pb.AttendRequest) { m.Attention.Lse = h.ref(0, 1, 2, 41) }, core.ErrInvalidArgument},
		{"parameter", func(m *pb.AttendRequest) { m.Attention.Params = map[string]*pb.Value{"x": nil} }, core.ErrInvalidArgument},
		{"parameter's type", func(m *pb.AttendRequest) {
			m.Attention.Params = map[string]*pb.Value{"wait": {Value: &pb.Value_IntValue{IntValue: 1}}}
		}, core.ErrInvalidArgument},
		{"beyond the segment", func(m *pb.AttendRequest) { m.Attention.Query.Offset = 1 << 16 }, core.ErrInvalidArgument},
		{"stale", func(m *pb.AttendRequest) { m.Attention.Query.Generation = 0 }, core.ErrInvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			id++
			m := &pb.AttendRequest{CallId: id, Strategy: "counting", Attention: h.attention(nil)}
			test.spoil(m)
			if _, err := client.Attend(t.Context(), m); kindOf(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	if _, err := client.Select(t.Context(), &pb.SelectRequest{CallId: 99, Strategy: "counting", Attention: h.attention(nil)}); err != nil {
		t.Errorf("the next good call: %v", err)
	}
}

// TestNotAnnounced checks that memory that never comes is an error, not a call
// that hangs.
func TestNotAnnounced(t *testing.T) {
	h := serveHere(t, Config{Strategies: []core.Strategy{&counting{}}})
	m := &pb.SelectRequest{CallId: 1, Strategy: "counting", Attention: h.attention(nil)}
	m.Attention.Key.SegmentId = 1 << 40
	began := time.Now()
	if _, err := pb.NewAttentionServiceClient(h.conn).Select(t.Context(), m); kindOf(err) != core.ErrInvalidArgument {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 2*announceTime {
		t.Errorf("took %v", took)
	}
}

// TestSettle checks that it outlasts a cancelled call, however the two race.
func TestSettle(t *testing.T) {
	strategy := &counting{begun: make(chan struct{}, 1)}
	h := serveHere(t, Config{Strategies: []core.Strategy{strategy}})
	client, catalog := pb.NewAttentionServiceClient(h.conn), pb.NewCatalogServiceClient(h.conn)
	for id := uint64(1); id <= 100; id++ {
		ctx, cancel := context.WithCancel(t.Context())
		switch id % 4 {
		case 0: // while it runs
			go func() {
				<-strategy.begun
				cancel()
			}()
		default: // perhaps before it begins
			time.AfterFunc(time.Duration(id%7)*20*time.Microsecond, cancel)
		}
		m := &pb.SelectRequest{CallId: id, Strategy: "counting", Attention: h.attention(core.Params{"wait": true})}
		if _, err := client.Select(ctx, m); err == nil {
			t.Fatalf("call %d was not cancelled", id)
		}
		cancel()
		if _, err := catalog.Settle(t.Context(), &pb.SettleRequest{CallId: id}); err != nil {
			t.Fatal(err)
		}
		strategy.mu.Lock()
		running := strategy.running
		strategy.mu.Unlock()
		if running != 0 {
			t.Fatalf("call %d runs although it has settled", id)
		}
		select {
		case <-strategy.begun:
		default:
		}
	}
}

func TestKernel(t *testing.T) {
	k := kernel{selections: make(chan *core.Selection, 1)}
	h := serveHere(t, Config{Strategies: []core.Strategy{&counting{}}, Kernel: k})
	for id, test := range []struct {
		dense bool
		want  string
	}{{false, "asked"}, {true, "force_dense"}} {
		m := &pb.AttendRequest{CallId: uint64(id + 1), Strategy: "counting", Attention: h.attention(nil)}
		m.Attention.ForceDense = test.dense
		reply, err := pb.NewAttentionServiceClient(h.conn).Attend(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-k.selections; got.Reason != test.want || reply.GetReport().GetStrategy() != "attention.counting" {
			t.Errorf("selection %+v, report %v", got, reply.GetReport())
		}
	}
}

func TestDescribe(t *testing.T) {
	var text bytes.Buffer
	if err := describe(&text, Config{Strategies: []core.Strategy{&counting{}}, Kernel: kernel{}}); err != nil {
		t.Fatal(err)
	}
	var infos []core.Info
	if err := json.Unmarshal(text.Bytes(), &infos); err != nil {
		t.Fatal(err)
	}
	if len(infos) != 1 || infos[0].ID() != "attention.counting" || !infos[0].Capabilities.Attends {
		t.Errorf("got %+v: with a kernel it attends", infos)
	}
	if err := describe(&text, Config{Strategies: []core.Strategy{&counting{}, &counting{}}}); err == nil {
		t.Error("two strategies of one name passed")
	}
}
