package wire

import (
	"math"

	"github.com/trivium-ml/trivium/core"
)

const (
	maxRank = 8
	// maxRepeats is how often a broadcast input may repeat an element.
	maxRepeats = 1 << 20
	maxCount   = 1 << 31 // of heads, blocks, rows and the like
	maxBands   = 1 << 12
)

// count checks a number that says how many or which, and is at least low.
func count(name string, n, low int64) (int, error) {
	if n < low || n >= maxCount {
		return 0, core.Invalid("", "message: %s %d: want %d to %d", name, n, low, int64(maxCount)-1)
	}
	return int(n), nil
}

// finite checks real numbers that enter arithmetic.
func finite(name string, numbers ...float64) error {
	for _, f := range numbers {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return core.Invalid("", "message: %s %g: want a finite number", name, f)
		}
	}
	return nil
}

// absent is the error for a part of a message that must be there.
func absent(name string) error { return core.Invalid("", "message: %s is absent", name) }
