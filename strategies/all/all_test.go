package all

import (
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware/cpu"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// Every strategy can be registered, has what help and documentation are made
// of, and defaults that its own validation accepts.
func TestEveryStrategyDescribesItself(t *testing.T) {
	backend, err := cpu.Open("serial")
	if err != nil {
		t.Fatal(err)
	}
	strategies := append(append(Attention(kernel.New(backend)), Position()...), Merge(tile.New(backend))...)
	registry := core.NewRegistry()
	for _, s := range strategies {
		info := s.Info()
		t.Run(info.ID(), func(t *testing.T) {
			if err := registry.Register(s); err != nil {
				t.Fatal(err)
			}
			if info.Summary == "" || info.License == "" || info.Version == "" {
				t.Errorf("summary %q, license %q, version %q: want all", info.Summary, info.License, info.Version)
			}
			params, err := info.Validate(nil, 4)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := info.Validate(params, 4); err != nil {
				t.Errorf("its own defaults are refused: %v", err)
			}
			for _, p := range info.Parameters {
				if p.Doc == "" {
					t.Errorf("parameter %s has no doc", p.Name)
				}
			}
		})
	}
	if len(strategies) < 12 {
		t.Errorf("%d strategies, want at least the twelve of the first release", len(strategies))
	}
}
