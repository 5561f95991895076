package sdk

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// server serves the strategies of one kind.
type server struct {
	config   Config
	kind     core.StrategyKind
	registry *core.Registry
	table    *shm.Table
	log      hclog.Logger
	calls    calls
}

func newServer(c Config, kind core.StrategyKind, table *shm.Table, log hclog.Logger) (*server, error) {
	registry, err := c.registry()
	if err != nil {
		return nil, err
	}
	if len(registry.List(kind)) == 0 || kind == "" {
		return nil, core.Errorf(core.ErrPluginRefused, "kind %q: this plugin has no such strategies", kind)
	}
	return &server{config: c, kind: kind, registry: registry, table: table, log: log}, nil
}

// options bound what a host may send and guard every call. Stream workers keep
// their grown stacks from call to call.
func (s *server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(plugins.MaxMessage), grpc.MaxSendMsgSize(plugins.MaxMessage),
		grpc.ChainUnaryInterceptor(s.guard), grpc.NumStreamWorkers(uint32(runtime.GOMAXPROCS(0))),
	}
}

// register adds the services of the kind.
func (s *server) register(to grpc.ServiceRegistrar) {
	pb.RegisterCatalogServiceServer(to, catalog{server: s})
	switch s.kind {
	case core.Attention:
		pb.RegisterAttentionServiceServer(to, attention{server: s})
	case core.Position:
		pb.RegisterPositionServiceServer(to, position{server: s})
	case core.Merge:
		pb.RegisterMergeServiceServer(to, merge{server: s})
	}
}

// identified is a request that a later one may refer to.
type identified interface{ GetCallId() uint64 }

// guard records the call, turns a panic into an error, and gives errors the
// form in which they travel. go-plugin's own calls pass.
func (s *server) guard(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	call, ours := req.(identified)
	if _, settles := req.(*pb.SettleRequest); !ours || settles {
		return handle(ctx, req)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end, err := s.calls.begin(ctx, cancel, call.GetCallId())
	if err != nil {
		return nil, wire.EncodeError(err)
	}
	defer end()
	defer func() {
		if cause := recover(); cause != nil {
			s.log.Error("panic in a strategy", "method", info.FullMethod, "panic", cause, "stack", string(debug.Stack()))
			err = wire.EncodeError(core.Errorf(core.ErrInternal, "panic: %v", cause).
				WithHint("this is a mistake in the plugin; its log has the stack"))
		}
	}()
	reply, err = handle(ctx, req)
	if err != nil {
		return nil, wire.EncodeError(err)
	}
	return reply, nil
}

// lookup finds a strategy of the kind served.
func (s *server) lookup(name string) (core.Strategy, core.Info, error) {
	strategy, err := s.registry.Lookup(s.kind, name)
	if err != nil {
		return nil, core.Info{}, err
	}
	return strategy, s.config.info(strategy), nil
}
