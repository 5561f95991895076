package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/shm"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// describeFlag makes a plugin print what its manifest says of its strategies.
const describeFlag = "--describe"

// Serve is the whole of a plugin's main: it serves c until the host ends, and
// does not return.
func Serve(c Config) {
	if len(os.Args) == 2 && os.Args[1] == describeFlag {
		exit(describe(os.Stdout, c))
	}
	if path := os.Getenv(plugins.EnvAttach); path != "" && !Hosted() {
		if err := attach(path); err != nil {
			exit(err)
		}
	}
	if !Hosted() {
		exit(fmt.Errorf("this is a Trivium plugin: it is started by a host; %s prints its strategies", describeFlag))
	}
	exit(serve(c, core.StrategyKind(os.Getenv(plugins.EnvKind))))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// describe writes []core.Info as JSON.
func describe(to io.Writer, c Config) error {
	if _, err := c.registry(); err != nil {
		return err
	}
	infos := c.Describe()
	for _, info := range infos {
		if _, err := wire.EncodeInfo(info); err != nil {
			return err
		}
	}
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	return encoder.Encode(infos)
}

func serve(c Config, kind core.StrategyKind) error {
	// The log keeps the standard error that the process started with: go-plugin
	// replaces os.Stderr.
	log := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, JSONFormat: true, Level: hclog.Debug})
	sideChannel, err := Inherit()
	if err != nil {
		return err
	}
	table, err := shm.Attach(sideChannel)
	if err != nil {
		return err
	}
	defer table.Close()
	s, err := newServer(c, kind, table, log)
	if err != nil {
		return err
	}
	// Before the handshake, so that a host that has shaken hands knows of it.
	if err := s.serveLane(); err != nil {
		return err
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: plugins.ProtocolVersion, MagicCookieKey: plugins.CookieKey, MagicCookieValue: plugins.CookieValue,
		},
		Plugins: plugin.PluginSet{string(kind): &service{server: s}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, s.options()...)...)
		},
		Logger: log,
	})
	return nil
}

// service hands the server to go-plugin.
type service struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

var _ plugin.GRPCPlugin = (*service)(nil)

func (s *service) GRPCServer(_ *plugin.GRPCBroker, to *grpc.Server) error {
	s.server.register(to)
	return nil
}

// GRPCClient is the host's part, which it plays without go-plugin's plugin sets.
func (s *service) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("a plugin process has no client side")
}
