package checkpoint

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/trivium-ml/trivium/core/tensor"
)

// maxCuts bounds how deep a tensor is cut: meshes of devices have a few axes.
const maxCuts = 64

// checkTiling wants parts that fill a box, each place once. Like those that a mesh
// of devices writes, they must come of cutting along planes, one after the other.
// It is not nil for parts that overlap, leave a hole, or reach outside.
func checkTiling(shape []int64, parts []tensor.Part) error {
	return tile(make([]int64, len(shape)), shape, slices.Clone(parts), maxCuts)
}

// tile checks the box from low to high.
func tile(low, high []int64, parts []tensor.Part, depth int) error {
	switch {
	case len(parts) == 0:
		return fmt.Errorf("no chunk has elements %v to %v", low, high)
	case depth == 0:
		return fmt.Errorf("its chunks are cut more than %d times one after the other", maxCuts)
	case len(parts) == 1:
		p := parts[0]
		for axis := range low {
			if p.At[axis] != low[axis] || p.At[axis]+p.Shape[axis] != high[axis] {
				return fmt.Errorf("the chunk at %v of %v is alone in elements %v to %v, and does not fill them", p.At, p.Shape, low, high)
			}
		}
		return nil
	}
	for axis := range low {
		slices.SortFunc(parts, func(a, b tensor.Part) int { return cmp.Compare(a.At[axis], b.At[axis]) })
		if cuts := planes(axis, parts); len(cuts) > 0 {
			return slabs(axis, low, high, parts, cuts, depth)
		}
	}
	return fmt.Errorf("%d chunks in elements %v to %v overlap, as those at %v of %v and at %v of %v", len(parts), low, high, parts[0].At, parts[0].Shape, parts[1].At, parts[1].Shape)
}

// planes are the indices at which parts, sorted along an axis, fall into groups
// that do not reach into each other.
func planes(axis int, parts []tensor.Part) []int {
	var cuts []int
	reach := parts[0].At[axis] + parts[0].Shape[axis]
	for i, p := range parts[1:] {
		if p.At[axis] >= reach {
			cuts = append(cuts, i+1)
		}
		reach = max(reach, p.At[axis]+p.Shape[axis])
	}
	return cuts
}

// slabs checks each group in the slab from where it begins to the next.
func slabs(axis int, low, high []int64, parts []tensor.Part, cuts []int, depth int) error {
	begin := 0
	from, to := slices.Clone(low), slices.Clone(high)
	for _, end := range append(cuts, len(parts)) {
		to[axis] = high[axis]
		if end < len(parts) {
			to[axis] = parts[end].At[axis]
		}
		if err := tile(from, to, parts[begin:end], depth-1); err != nil {
			return err
		}
		begin, from[axis] = end, to[axis]
	}
	return nil
}
