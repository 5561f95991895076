// Package backends lists the backends that tests of strategies run on.
package backends

import (
	"testing"

	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/hardware/cpu"
	"github.com/trivium-ml/trivium/strategies/internal/oracle"
)

// Each runs a test on the oracle and on every instruction set of this machine.
func Each(t *testing.T, test func(t *testing.T, backend hardware.Backend)) {
	t.Run("oracle", func(t *testing.T) { test(t, oracle.New()) })
	for _, isa := range cpu.Available() {
		backend, err := cpu.Open(isa)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(backend.Name(), func(t *testing.T) { test(t, backend) })
	}
}

// Best is the fastest backend of this machine.
func Best(t *testing.T) hardware.Backend {
	t.Helper()
	backend, err := cpu.Open("")
	if err != nil {
		t.Fatal(err)
	}
	return backend
}
