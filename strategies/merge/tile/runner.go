// Package tile runs merge strategies over files a tile at a time. A linear
// strategy is a function that gives weights; any other is a function over the
// numbers of one tile. Mapping files, integers, NaN and Inf, cancelling and
// threads are seen to here, the same way for all of them.
package tile

import (
	"context"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/internal/parallel"
)

// Elements of a tile: what one thread maps of each operand at a time. Tiles of a
// merge are as large as leaves work for all threads, since mapping costs
// interrupts on all processors, and get small in the end so that none waits.
const (
	elements       = 2 << 20
	least, largest = 1 << 20, 8 << 20
	tilesEach      = 4 // for each thread, of what is left
)

// Runner merges on one backend. It holds no state between calls and is safe
// for use by several goroutines.
type Runner struct {
	backend hardware.Backend
}

// New makes a runner on a backend.
func New(backend hardware.Backend) *Runner { return &Runner{backend: backend} }

// job is a tile of a tensor.
type job struct {
	tensor       int
	start, count int64 // elements
}

// batch is one call under way.
type batch struct {
	runner    *Runner
	id        string
	req       *core.MergeRequest
	nonFinite [][]atomic.Int64 // by tensor and source, the base last
	buffers   buffers          // of results
	sources   buffers          // of sources that are not in one piece
}

func newBatch(r *Runner, id string, req *core.MergeRequest) *batch {
	b := &batch{runner: r, id: id, req: req, nonFinite: make([][]atomic.Int64, len(req.Tensors))}
	for i := range b.nonFinite {
		b.nonFinite[i] = make([]atomic.Int64, req.Sources+1)
	}
	return b
}

// run cuts the tensors into tiles and merges them on the request's threads.
// Each element depends on its own tile alone, so the bytes do not depend on the
// number of threads.
func (r *Runner) run(ctx context.Context, id string, req *core.MergeRequest, merge func(ctx context.Context, b *batch, j job) error) (*core.MergeResponse, error) {
	b := newBatch(r, id, req)
	for i := range req.Tensors {
		if err := b.check(&req.Tensors[i]); err != nil {
			return nil, err
		}
	}
	jobs := b.shrinkingTiles()
	err := each(ctx, req.Threads, len(jobs), func(i int) error {
		if next := i + runtime.GOMAXPROCS(0); next < len(jobs) {
			b.willNeed(jobs[next])
		}
		if t := &req.Tensors[jobs[i].tensor]; copied(t) {
			return b.copy(jobs[i])
		}
		return merge(ctx, b, jobs[i])
	})
	if err != nil {
		return nil, err
	}
	return b.response(), nil
}

// willNeed starts to read a tile of the sources that will be mapped soon: page
// faults would read it piece by piece and wait for each.
func (b *batch) willNeed(j job) {
	for _, in := range b.req.Tensors[j.tensor].Inputs {
		size := in.Dtype.Size()
		in.Extent.WillNeed(j.start*size, j.count*size)
	}
}

// tiles cuts a tensor, the same way whatever the threads.
func tiles(tensor int, n int64) []job {
	var jobs []job
	for start := int64(0); start < n; start += elements {
		jobs = append(jobs, job{tensor: tensor, start: start, count: min(elements, n-start)})
	}
	return jobs
}

// shrinkingTiles cuts all tensors for merges in which an element depends on
// nothing but itself. Tiles begin at multiples of their size in the file, and so
// do the pages that are mapped and written, large ones too.
func (b *batch) shrinkingTiles() []job {
	threads := int64(b.req.Threads)
	if threads == 0 {
		threads = int64(runtime.GOMAXPROCS(0))
	}
	left := int64(0)
	for i := range b.req.Tensors {
		left += length(b.req.Tensors[i].Shape)
	}
	var jobs []job
	for i := range b.req.Tensors {
		t := &b.req.Tensors[i]
		n := length(t.Shape)
		for start := int64(0); start < n; {
			size := int64(least)
			for !cut(t) && size < largest && size*2*tilesEach*threads <= left {
				size *= 2
			}
			count := min(upTo(t.Inputs[0], start, size), n-start)
			jobs = append(jobs, job{tensor: i, start: start, count: count})
			start, left = start+count, left-count
		}
	}
	return jobs
}

// cut says whether some of a tile may have to be copied to be in one piece, which
// takes memory: tiles stay small then.
func cut(t *core.MergeTensor) bool {
	return slices.ContainsFunc(t.Inputs, func(o core.MergeOperand) bool { return o.Extent.Cut != nil && !pieces(o) })
}

// pieces says whether an operand lies in so small pieces that it is put together a
// chunk at a time.
func pieces(o core.MergeOperand) bool {
	return o.Extent.Cut != nil && o.Extent.Cut.Run() < chunk*o.Dtype.Size()
}

// upTo is how many elements there are from first to the next multiple of step in
// the operand's file.
func upTo(o core.MergeOperand, first, step int64) int64 {
	return step - (o.Extent.Offset/o.Dtype.Size()+first)%step
}

func length(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}

// copied says whether a tensor holds no real numbers: it is taken from the
// newest source.
func copied(t *core.MergeTensor) bool { return !t.Inputs[len(t.Inputs)-1].Dtype.IsFloat() }

func (b *batch) response() *core.MergeResponse {
	response := &core.MergeResponse{Backend: b.runner.backend.Name()}
	for i := range b.req.Tensors {
		report := core.TensorReport{Name: b.req.Tensors[i].Name, Policy: "merged"}
		if copied(&b.req.Tensors[i]) {
			report.Policy = "copied"
		} else {
			for s := range b.req.Sources {
				report.NonFinite = append(report.NonFinite, b.nonFinite[i][s].Load())
			}
		}
		response.Tensors = append(response.Tensors, report)
	}
	return response
}

// count adds up the NaN and Inf of a tile, and refuses them unless allowed.
func (b *batch) count(j job, nonFinite []int64) error {
	for s, n := range nonFinite {
		b.nonFinite[j.tensor][s].Add(n)
	}
	return b.refuse(j, nonFinite)
}

func (b *batch) refuse(j job, nonFinite []int64) error {
	if b.req.AllowNonFinite {
		return nil
	}
	for s, n := range nonFinite {
		if n > 0 {
			return (&core.Error{Kind: core.ErrCheckpoint, Strategy: b.id, Message: nonFiniteMessage(&b.req.Tensors[j.tensor], s, n, j)}).
				WithHint("mend that checkpoint, leave it out, or pass allow_non_finite=True")
		}
	}
	return nil
}

// each runs do for 0 to n-1 on some threads, all of the process when 0.
func each(ctx context.Context, threads, n int, do func(i int) error) error {
	return parallel.Each(ctx, threads, n, do)
}
