package core

import (
	"slices"
	"strings"
	"sync"
)

// Registry holds strategies by kind and name. It is a value: make one for each
// engine. It is safe for use by several goroutines.
type Registry struct {
	mu         sync.RWMutex
	strategies map[StrategyKind]map[string]Strategy
}

// NewRegistry makes an empty registry.
func NewRegistry() *Registry {
	return &Registry{strategies: map[StrategyKind]map[string]Strategy{Attention: {}, Position: {}, Merge: {}}}
}

// Register adds a strategy. A name that is taken, or a strategy that does not
// have the interface of its kind, is an error.
func (r *Registry) Register(s Strategy) error {
	info := s.Info()
	if !hasInterface(s, info.Kind) {
		return Invalid(info.ID(), "%T does not have the methods of a strategy of kind %q", s, info.Kind)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.strategies[info.Kind][info.Name]; taken {
		return Invalid(info.ID(), "registered already").WithHint("remove one of the two plugins, or give the strategy another name")
	}
	r.strategies[info.Kind][info.Name] = s
	return nil
}

func hasInterface(s Strategy, kind StrategyKind) bool {
	ok := false
	switch kind {
	case Attention:
		_, ok = s.(AttentionStrategy)
	case Position:
		_, ok = s.(PositionStrategy)
	case Merge:
		_, ok = s.(MergeStrategy)
	}
	return ok
}

// Lookup finds a strategy by name, with or without its kind in front.
func (r *Registry) Lookup(kind StrategyKind, name string) (Strategy, error) {
	name = strings.TrimPrefix(name, string(kind)+".")
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s, ok := r.strategies[kind][name]; ok {
		return s, nil
	}
	names := make([]string, 0, len(r.strategies[kind]))
	for n := range r.strategies[kind] {
		names = append(names, n)
	}
	slices.Sort(names)
	err := Errorf(ErrUnknownStrategy, "no %s strategy %q", kind, name)
	if near := Nearest(name, names); near != "" {
		return nil, err.WithHint("did you mean %q?", near)
	}
	return nil, err.WithHint("there are: %s", strings.Join(names, ", "))
}

// List describes the strategies of a kind, or of every kind when it is "",
// sorted by kind and name.
func (r *Registry) List(kind StrategyKind) []Info {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var infos []Info
	for k, named := range r.strategies {
		if kind != "" && k != kind {
			continue
		}
		for _, s := range named {
			infos = append(infos, s.Info())
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.ID(), b.ID()) })
	return infos
}
