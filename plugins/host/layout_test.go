package host

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/plugins/wire"
)

// layouts are of elements without overlaps: axes in any order, with gaps.
var layouts = rapid.Custom(func(t *rapid.T) layout {
	shape := rapid.SliceOfN(rapid.Int64Range(1, 6), 0, 4).Draw(t, "shape")
	l := layout{shape: shape, strides: make([]int64, len(shape)), size: rapid.SampledFrom([]int64{1, 2, 4, 8}).Draw(t, "size")}
	order := rapid.Permutation(indices(len(shape))).Draw(t, "order")
	step := int64(1)
	for _, axis := range order {
		step += rapid.Int64Range(0, 1).Draw(t, "gap") * rapid.Int64Range(0, 3).Draw(t, "gap size")
		l.strides[axis] = step
		step *= shape[axis]
	}
	return l
})

func indices(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func (l layout) span() int64 {
	last := int64(0)
	for i, n := range l.shape {
		last += (n - 1) * l.strides[i]
	}
	return (last + 1) * l.size
}

// each calls do with the index of every element.
func (l layout) each(do func(at []int64)) {
	at := make([]int64, len(l.shape))
	for range l.len() {
		do(at)
		advance(at, l.shape)
	}
}

func TestCopyElements(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := layouts.Draw(t, "from")
		to := layout{shape: from.shape, strides: from.rowMajor().strides, size: from.size}
		if rapid.Bool().Draw(t, "scatter") {
			from, to = to, from
		}
		source, target := noise(from.span()), make([]byte, to.span())
		copyElements(target, to, source, from)
		written := make([]bool, len(target))
		from.each(func(at []int64) {
			a, b := from.offset(at), to.offset(at)
			if !slices.Equal(source[a:a+from.size], target[b:b+from.size]) {
				t.Fatalf("element %v of %+v did not arrive in %+v", at, from, to)
			}
			for i := range from.size {
				written[b+i] = true
			}
		})
		for i, w := range written {
			if !w && target[i] != 0 {
				t.Fatalf("byte %d between the elements of %+v was written", i, to)
			}
		}
	})
}

func TestDense(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := layouts.Draw(t, "layout")
		if got, want := l.dense(), l.span() == l.len()*l.size; got != want {
			t.Fatalf("%+v: dense %t, want %t", l, got, want)
		}
	})
	for _, overlapping := range []layout{
		{shape: []int64{2, 2}, strides: []int64{0, 1}, size: 4},
		{shape: []int64{3, 2}, strides: []int64{1, 1}, size: 4},
		{shape: []int64{2, 2, 2}, strides: []int64{0, 3, 1}, size: 4}, // as long as its elements, with gaps
	} {
		if overlapping.dense() {
			t.Errorf("%+v is not dense: elements overlap", overlapping)
		}
	}
}

func TestParallelCopy(t *testing.T) {
	for _, size := range []int{0, 1, copyGrain - 1, copyGrain, 3*copyGrain + 17} {
		from, to := noise(int64(size)), make([]byte, size)
		parallelCopy(to, from)
		if !slices.Equal(to, from) {
			t.Errorf("%d bytes did not arrive", size)
		}
	}
}

func noise(size int64) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	bytes := make([]byte, size)
	for i := range bytes {
		bytes[i] = byte(1 + random.IntN(255))
	}
	return bytes
}

// TestMaskCapacity checks that there is room for the mask that keeps all.
func TestMaskCapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		heads, length := rapid.Int64Range(1, 4).Draw(t, "heads"), rapid.Int64Range(1, 300).Draw(t, "length")
		x, err := tensor.Make(tensor.Float32, 1, heads, length, 2)
		if err != nil {
			t.Fatal(err)
		}
		req := &core.AttentionRequest{Query: x, Key: x, Value: x, Causal: rapid.Bool().Draw(t, "causal")}
		if length > 20 && rapid.Bool().Draw(t, "packed") {
			req.CuSeqlens = []int64{0, 20, length}
		} else {
			req.QueryOffset = []int64{rapid.Int64Range(0, length).Draw(t, "offset")}
		}
		size := 16 * rapid.IntRange(1, 8).Draw(t, "block size")
		if rapid.Bool().Draw(t, "known") {
			req.Params = core.Params{"block_size": int64(size)}
		}
		mask := core.DenseMask(size, int(heads), req.BlockExtents(size), req.Causal)
		if room, want := maskCapacity(req), wire.MaskSize(int64(mask.Rows()), int64(len(mask.Columns))); room < want {
			t.Fatalf("room for %d bytes, want %d", room, want)
		}
	})
}
