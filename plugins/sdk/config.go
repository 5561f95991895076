package sdk

import (
	"context"
	"slices"
	"strings"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// Config is what a plugin serves.
type Config struct {
	Strategies []core.Strategy
	// Kernel attends to what strategies select that do not attend themselves.
	// Without one they only select, and the engine lets the built-in plugin
	// attend.
	Kernel Kernel
	// Devices are the accelerators that strategies may use; nil: none.
	Devices Devices
}

// Devices opens memory of accelerators. It must be safe for concurrent use.
type Devices interface {
	// Open gives the address in this process of a block that the host exported,
	// and the name that its device has here. It stays open until Close.
	Open(block tensor.Block) (address uintptr, device tensor.Device, err error)
	// Close lets go of blocks, by their handles; those that are not open are
	// passed over.
	Close(handles [][]byte) error
	// List describes the accelerators, or what is missing to use one.
	List() []core.Device
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
