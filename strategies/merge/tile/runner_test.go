package tile

import (
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// Tiles cover every element once, in order, never grow by more than the cut to
// the file's grid, and leave the last ones small.
func TestShrinkingTilesCoverEverything(t *testing.T) {
	for _, threads := range []int{1, 2, 64} {
		b := &batch{req: &core.MergeRequest{Threads: threads}}
		offset := int64(24)
		for _, n := range []int64{1, 1000, least, 3*largest + 5, 40 << 20} {
			in := core.MergeOperand{Dtype: tensor.BFloat16, Extent: tensor.Extent{Offset: offset, Size: 2 * n}}
			b.req.Tensors = append(b.req.Tensors, core.MergeTensor{Shape: []int64{n}, Inputs: []core.MergeOperand{in}})
			offset += 2 * n
		}
		jobs := b.shrinkingTiles()
		at, next := 0, int64(0)
		for _, j := range jobs {
			for next == length(b.req.Tensors[at].Shape) {
				at, next = at+1, 0
			}
			if j.tensor != at || j.start != next || j.count < 1 || j.count > largest {
				t.Fatalf("%d threads: tile %+v follows element %d of tensor %d", threads, j, next, at)
			}
			if in := b.req.Tensors[at].Inputs[0]; j.start > 0 && (in.Extent.Offset/2+j.start)%least != 0 {
				t.Errorf("%d threads: tile %+v does not begin on the file's grid", threads, j)
			}
			next += j.count
		}
		if at != len(b.req.Tensors)-1 || next != length(b.req.Tensors[at].Shape) {
			t.Errorf("%d threads: the tiles end at element %d of tensor %d", threads, next, at)
		}
		if last := jobs[len(jobs)-1].count; last > least {
			t.Errorf("%d threads: the last tile has %d elements, want at most %d", threads, last, least)
		}
		if threads == 1 && jobs[len(jobs)/2].count < largest/2 {
			t.Errorf("one thread: a tile in the middle has %d elements", jobs[len(jobs)/2].count)
		}
	}
}
