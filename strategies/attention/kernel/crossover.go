package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Crossover says up to how many tokens dense attention is the faster on a
// machine, as `trivium tune` measured it.
type Crossover struct {
	Backend string `json:"backend"` // that it was measured on; of no use on another
	// DenseUpTo has tokens by strategy, then by dtype and head_dim: "bfloat16/128".
	DenseUpTo map[string]map[string]int `json:"dense_up_to"`
}

// ReadCrossover reads a file of `trivium tune`; nil when there is none.
func ReadCrossover(path string) (*Crossover, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &Crossover{}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("%s: %w: want a file that `trivium tune` wrote", path, err)
	}
	return c, nil
}

// WithCrossover makes prompts dense that are too short for selecting to pay.
func (k *Kernel) WithCrossover(c *Crossover) *Kernel {
	if c == nil || c.Backend != k.backend.Name() {
		return k
	}
	return &Kernel{backend: k.backend, crossover: c}
}

// measuredDims are the head_dims that are measured; others go by the next one up.
var measuredDims = [...]int{64, 128}

// tooShort is the reason to attend densely, "" when there is none.
func (c *Call) tooShort() string {
	if c.kernel.crossover == nil || c.Request.Mask != nil {
		return ""
	}
	dim := measuredDims[len(measuredDims)-1]
	for _, d := range measuredDims {
		if c.Request.Query.Dim(3) <= d {
			dim = d
			break
		}
	}
	limit := c.kernel.crossover.DenseUpTo[c.info.Name][fmt.Sprintf("%s/%d", c.Request.Query.Dtype(), dim)]
	if c.Longest() > limit {
		return ""
	}
	return fmt.Sprintf("up to %d tokens dense is the faster on this machine, as `trivium tune` measured", limit)
}
