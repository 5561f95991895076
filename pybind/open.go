package pybind

import (
	"context"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// engine is an engine and the plugin processes below it.
type engine struct {
	*core.Engine
	host *host.Host
}

// engines are those that Python holds.
var engines = newHandles[*engine]("engine")

// closeLimit bounds how long plugin processes are waited for.
const closeLimit = 5 * time.Second

type engineConfig struct {
	Manifests []string `json:"manifests"` // of plugins that must be usable
	Dirs      []string `json:"dirs"`      // searched for manifests
	LogLevel  string   `json:"log_level"`
	LogPipe   int      `json:"log_pipe"` // descriptor for entries as JSON; 0: text on stderr
	Env       []string `json:"env"`      // further variables of plugin processes, NAME=value

	Lock       string      `json:"lock"`  // path of plugins.lock; "": none
	Store      string      `json:"store"` // where its plugins are; "": where the system keeps such things
	Locked     bool        `json:"locked"`
	Grant      bool        `json:"grant"`
	Unconfined bool        `json:"unconfined"`
	Python     host.Python `json:"python"` // for plugins that it runs

	Defaults map[string]core.Params `json:"defaults"` // of parameters, by dotted identifier
}

// OpenEngine makes an engine over some plugins. No process starts.
func OpenEngine(config string) (id int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	var in engineConfig
	if err := unmarshal(config, &in); err != nil {
		return 0, err
	}
	log, err := newLog(in)
	if err != nil {
		return 0, err
	}
	e, err := openEngine(in, log)
	if err != nil {
		return 0, err
	}
	return engines.add(e), nil
}

func openEngine(in engineConfig, log *logrus.Logger) (*engine, error) {
	pool, err := segments()
	if err != nil {
		return nil, err
	}
	if in.Store == "" {
		in.Store = host.DefaultStore(os.Getenv)
	}
	h, err := host.Open(context.Background(), host.Options{
		Manifests: in.Manifests, Dirs: in.Dirs, Log: log, Pool: pool, DeviceMemory: deviceMemory, AttentionEnded: losses.ended, Env: in.Env,
		Lock: in.Lock, Store: in.Store, Locked: in.Locked, Grant: in.Grant, Unconfined: in.Unconfined, Python: in.Python,
		Defaults: in.Defaults,
	})
	if err != nil {
		return nil, err
	}
	registry := core.NewRegistry()
	if err := h.Register(registry); err != nil {
		h.Close(context.Background())
		return nil, err
	}
	return &engine{core.NewEngine(registry, log), h}, nil
}

// CloseEngine ends the engine's plugin processes. Calls under way fail.
func CloseEngine(engine int64) (id int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	e, err := engines.take(engine)
	if err != nil {
		return 0, err
	}
	e.Close()
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return engine, e.host.Close(ctx)
}
