package tile

import (
	"context"

	"github.com/trivium-ml/trivium/hardware"
)

// portion is how many elements a thread takes at a time: few enough that the
// last of a tensor's do not leave threads idle.
const portion = 128 << 10

func (t *Tensor) portions() []job { return t.cut(portion) }

// rows are portions of whole rows, of one at least.
func (t *Tensor) rows() []job { return t.cut(max(1, portion/int64(t.Row)) * int64(t.Row)) }

func (t *Tensor) cut(count int64) []job {
	jobs := make([]job, 0, t.Len/count+1)
	for start := int64(0); start < t.Len; start += count {
		jobs = append(jobs, job{tensor: t.index, start: start, count: min(count, t.Len-start)})
	}
	return jobs
}

// difference is some elements of the sources and the base.
func (t *Tensor) difference(first, count int64) hardware.Differences {
	parts := t.mapped.part(first, count)
	d := hardware.Differences{In: parts[:t.Sources]}
	if t.HasBase {
		d.Base = &parts[t.Sources]
	}
	return d
}

// Products gives the inner products of the sources, less the base if there is
// one: [sources, sources]. Portions are added up in order, so that the result
// does not depend on threads.
func (t *Tensor) Products(ctx context.Context) ([]float64, error) {
	jobs, n := t.portions(), t.Sources
	parts := make([]float64, len(jobs)*n*n)
	err := each(ctx, t.batch.req.Threads, len(jobs), func(i int) error {
		d := t.difference(jobs[i].start, jobs[i].count)
		nonFinite, err := t.batch.runner.backend.Products(ctx, d, parts[i*n*n:(i+1)*n*n])
		if err != nil {
			return err
		}
		return t.batch.refuse(jobs[i], nonFinite)
	})
	for k := n * n; k < len(parts); k++ {
		parts[k%(n*n)] += parts[k]
	}
	return parts[:n*n], err
}

// Magnitudes adds to the counts of walks over the whole tensor.
func (t *Tensor) Magnitudes(ctx context.Context, walks []hardware.Walk) error {
	return t.walk(ctx, walks, t.batch.runner.backend.Magnitudes)
}

// Variances adds to the counts of a walk over the variances of the whole tensor.
func (t *Tensor) Variances(ctx context.Context, walk hardware.Walk) error {
	return t.walk(ctx, []hardware.Walk{walk}, func(ctx context.Context, d hardware.Differences, walks []hardware.Walk) ([]int64, error) {
		return t.batch.runner.backend.Variances(ctx, d, walks[0])
	})
}

func (t *Tensor) walk(ctx context.Context, walks []hardware.Walk, count func(ctx context.Context, d hardware.Differences, walks []hardware.Walk) ([]int64, error)) error {
	jobs := t.portions()
	var made [][]hardware.Walk // one set of counts for each thread, not for each portion
	free := make(chan []hardware.Walk, len(jobs))
	lock := make(chan struct{}, 1)
	err := each(ctx, t.batch.req.Threads, len(jobs), func(i int) error {
		var own []hardware.Walk
		select {
		case own = <-free:
		default:
			own = make([]hardware.Walk, len(walks))
			for w := range own {
				own[w] = walks[w]
				own[w].Counts = make([]int64, len(walks[w].Counts))
			}
			lock <- struct{}{}
			made = append(made, own)
			<-lock
		}
		defer func() { free <- own }()
		nonFinite, err := count(ctx, t.difference(jobs[i].start, jobs[i].count), own)
		if err != nil {
			return err
		}
		return t.batch.refuse(jobs[i], nonFinite)
	})
	for _, own := range made {
		for w := range walks {
			for k, n := range own[w].Counts {
				walks[w].Counts[k] += n
			}
		}
	}
	return err
}

// Squares gives, for each tile, the sums of the squares of each source's differences
// where the variance is not below limit.
func (t *Tensor) Squares(ctx context.Context, limit float32) ([][]float64, error) {
	sums := make([][]float64, len(t.jobs))
	err := each(ctx, t.batch.req.Threads, len(t.jobs), func(i int) error {
		sums[i] = make([]float64, t.Sources)
		nonFinite, err := t.batch.runner.backend.Squares(ctx, t.difference(t.jobs[i].start, t.jobs[i].count), limit, sums[i])
		if err != nil {
			return err
		}
		return t.batch.refuse(t.jobs[i], nonFinite)
	})
	return sums, err
}

// overBase merges a portion: write makes it of the differences.
func (t *Tensor) overBase(j job, write func(out hardware.Vector, d hardware.Differences) ([]int64, error)) error {
	var nonFinite []int64
	err := t.batch.store(t.merge.Outputs, j.start, j.count, func(out []hardware.Vector) (err error) {
		nonFinite, err = write(out[0], t.difference(j.start, j.count))
		return err
	})
	if err != nil {
		return err
	}
	return t.batch.count(j, nonFinite)
}
