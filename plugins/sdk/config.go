package sdk

import (
	"context"
	"slices"
	"strings"

	"github.com/trivium-ml/trivium/core"
)

// Config is what a plugin serves.
type Config struct {
	Strategies []core.Strategy
	// Kernel attends to what strategies select that do not attend themselves.
	// Without one they only select, and the engine lets the built-in plugin
	// attend.
	Kernel Kernel
}

// Kernel attends to selected blocks. It must be safe for concurrent use.
type Kernel interface {
	// Attend writes req.Output and req.LSE in place, from the tiles of the
	// selection. It borrows the tensors of req until it returns.
	Attend(ctx context.Context, req *core.AttentionRequest, selection *core.Selection) (*core.AttentionResponse, error)
}

// Describe lists the strategies sorted by id, with the capabilities that they
// have here.
func (c Config) Describe() []core.Info {
	infos := make([]core.Info, len(c.Strategies))
	for i, s := range c.Strategies {
		infos[i] = c.info(s)
	}
	slices.SortFunc(infos, func(a, b core.Info) int { return strings.Compare(a.ID(), b.ID()) })
	return infos
}

func (c Config) info(s core.Strategy) core.Info {
	info := s.Info()
	if info.Kind == core.Attention {
		_, attends := s.(core.Attender)
		info.Capabilities.Attends = attends || c.Kernel != nil
	}
	if info.Kind == core.Merge {
		_, info.Capabilities.Weights = s.(core.Weigher)
	}
	return info
}

// registry checks the strategies the way a host does.
func (c Config) registry() (*core.Registry, error) {
	registry := core.NewRegistry()
	for _, s := range c.Strategies {
		if err := registry.Register(s); err != nil {
			return nil, err
		}
	}
	return registry, nil
}
