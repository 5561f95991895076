package shm

import (
	"fmt"
	"math/bits"
	"os"
)

const (
	minClass = 64 << 10
	// maxClass keeps every size, and every sum of an offset and a size, in an int64.
	maxClass = 1 << 46
)

// classSize rounds size up to the next quarter step of a power of two (1, 1.25,
// 1.5, 1.75), and to a page: at most 25 % is unused, and pooled segments of
// nearby sizes are interchangeable.
func classSize(size int) (int, error) {
	if size < 0 || size > maxClass {
		return 0, fmt.Errorf("%w: size %d: want [0, %d]", ErrRange, size, maxClass)
	}
	if size <= minClass {
		return minClass, nil
	}
	step := 1 << (bits.Len(uint(size-1)) - 3)
	return roundUp(roundUp(size, step), os.Getpagesize()), nil
}

// roundUp rounds n up to a multiple of step, a power of two.
func roundUp(n, step int) int { return (n + step - 1) &^ (step - 1) }
