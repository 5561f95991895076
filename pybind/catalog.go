package pybind

import (
	"context"
	"runtime"
	"strings"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
)

// describedParameter is a parameter with its bounds in words.
type describedParameter struct {
	core.Parameter
	Range string `json:"range,omitempty"`
}

// describedInfo is core.Info as Python shows it.
type describedInfo struct {
	core.Info
	Parameters []describedParameter `json:"parameters"`
}

func described(info core.Info) describedInfo {
	d := describedInfo{Info: info, Parameters: make([]describedParameter, len(info.Parameters))}
	for i, p := range info.Parameters {
		d.Parameters[i] = describedParameter{p, p.Range()}
	}
	return d
}

// Catalog describes the strategies of a kind, or all when it is "", as JSON.
func Catalog(engine int64, kind string) (infos string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	e, err := engines.find(engine)
	if err != nil {
		return "", err
	}
	switch core.StrategyKind(kind) {
	case "", core.Attention, core.Position, core.Merge:
	default:
		return "", core.Invalid("", "kind %q: want attention, position or merge", kind)
	}
	list := []describedInfo{}
	for _, info := range e.List(core.StrategyKind(kind)) {
		list = append(list, described(info))
	}
	return marshal(list)
}

// Describe describes one strategy, named with or without its kind.
func Describe(engine int64, name string) (info string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	e, err := engines.find(engine)
	if err != nil {
		return "", err
	}
	names := []string{}
	for _, i := range e.List("") {
		if name == i.ID() || name == i.Name {
			return marshal(described(i))
		}
		names = append(names, i.Name)
	}
	unknown := core.Errorf(core.ErrUnknownStrategy, "no strategy %q", name)
	if near := core.Nearest(name, names); near != "" {
		return "", unknown.WithHint("did you mean %q?", near)
	}
	return "", unknown.WithHint("there are: %s", strings.Join(names, ", "))
}

// Stats counts what an engine did: see host.Stats.
func Stats(engine int64) (stats string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	e, err := engines.find(engine)
	if err != nil {
		return "", err
	}
	return marshal(e.host.Stats())
}

// pluginProcess is a plugin process, running or not.
type pluginProcess struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	PID      int    `json:"pid"`
	State    string `json:"state"`
	Restarts int    `json:"restarts"`
	Reason   string `json:"reason"`
	Confined bool   `json:"confined"`
	Rights   string `json:"rights"`
}

// Plugins lists the plugin processes of an engine.
func Plugins(engine int64) (processes string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	e, err := engines.find(engine)
	if err != nil {
		return "", err
	}
	list := []pluginProcess{}
	for _, p := range e.host.Plugins() {
		list = append(list, pluginProcess{p.Name, string(p.Kind), p.PID, string(p.State), p.Restarts, p.Reason, p.Confined, p.Rights})
	}
	return marshal(list)
}

// doctor starts every plugin process and asks it what it runs on.
func doctor(ctx context.Context, request string) (string, error) {
	var in struct {
		Engine int64 `json:"engine"`
	}
	if err := unmarshal(request, &in); err != nil {
		return "", err
	}
	e, err := engines.find(in.Engine)
	if err != nil {
		return "", err
	}
	return marshal(map[string]any{
		"machine":     map[string]any{"os": runtime.GOOS, "arch": runtime.GOARCH, "cpus": runtime.NumCPU(), "go": runtime.Version()},
		"plugins":     e.host.Check(ctx),
		"confinement": host.Confinable(),
	})
}
