package host

import (
	"slices"

	"github.com/trivium-ml/trivium/core/tensor"
)

// layout is how the elements of a tensor lie in memory.
type layout struct {
	shape, strides []int64 // strides in elements
	size           int64   // of an element, in bytes
}

func layoutOf(t *tensor.Tensor) layout {
	return layout{shape: t.Shape(), strides: t.Strides(), size: t.Dtype().Size()}
}

// rowMajor is the layout of the same elements without gaps.
func (l layout) rowMajor() layout {
	return layout{shape: l.shape, strides: tensor.RowMajor(l.shape), size: l.size}
}

func (l layout) len() int64 {
	n := int64(1)
	for _, d := range l.shape {
		n *= d
	}
	return n
}

// dense says whether the elements fill their span without gaps or overlaps, in
// whatever order: such a tensor is copied as one block.
func (l layout) dense() bool {
	axes := make([]int, 0, len(l.shape))
	for i, n := range l.shape {
		if n != 1 {
			axes = append(axes, i)
		}
	}
	slices.SortFunc(axes, func(a, b int) int { return int(min(max(l.strides[a]-l.strides[b], -1), 1)) })
	step := int64(1)
	for _, i := range axes {
		if l.strides[i] != step {
			return false
		}
		step *= l.shape[i]
	}
	return true
}

// copyElements copies every element from one layout to another of the same
// shape. Both are checked to lie in their memory by whoever made them.
func copyElements(to []byte, toLayout layout, from []byte, fromLayout layout) {
	run, axes := sharedRun(toLayout, fromLayout)
	shape := fromLayout.shape[:axes]
	rows := layout{shape: shape}.len()
	grain := max(int(copyGrain/run), 1)
	parallel(int(rows), grain, func(start, end int) {
		at := make([]int64, axes)
		unflatten(at, shape, int64(start))
		for range end - start {
			toAt, fromAt := toLayout.offset(at), fromLayout.offset(at)
			copy(to[toAt:toAt+run], from[fromAt:fromAt+run])
			advance(at, shape)
		}
	})
}

// sharedRun is the number of bytes that lie together in both layouts, and the
// number of leading axes that are left to walk.
func sharedRun(a, b layout) (run int64, axes int) {
	run, axes = a.size, len(a.shape)
	for axes > 0 {
		i := axes - 1
		if a.shape[i] != 1 && (a.strides[i]*a.size != run || b.strides[i]*b.size != run) {
			break
		}
		run *= a.shape[i]
		axes--
	}
	return run, axes
}

// offset is the byte at which the element with index at, zero in the axes not
// given, begins.
func (l layout) offset(at []int64) int64 {
	n := int64(0)
	for i, x := range at {
		n += x * l.strides[i]
	}
	return n * l.size
}

func unflatten(at, shape []int64, n int64) {
	for i := len(shape) - 1; i >= 0; i-- {
		at[i], n = n%shape[i], n/shape[i]
	}
}

func advance(at, shape []int64) {
	for i := len(shape) - 1; i >= 0; i-- {
		if at[i]++; at[i] < shape[i] {
			return
		}
		at[i] = 0
	}
}
