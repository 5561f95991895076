package tile

import (
	"context"

	"github.com/trivium-ml/trivium/hardware"
)

// portion is how many elements a thread takes at a time: few enough that the
// last of a tensor's do not leave threads idle.
const portion = 128 << 10

func (t *Tensor) portions() []job {
	jobs := make([]job, 0, t.Len/portion+1)
	for start := int64(0); start < t.Len; start += portion {
		jobs = append(jobs, job{tensor: t.jobs[0].tensor, start: start, count: min(portion, t.Len-start)})
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
		nonFinite, err := t.batch.runner.backend.Magnitudes(ctx, t.difference(jobs[i].start, jobs[i].count), own)
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

// sparse merges a portion.
func (t *Tensor) sparse(ctx context.Context, j job, sum hardware.SparseSum) error {
	var nonFinite []int64
	sum.Element = j.start
	err := t.batch.store(t.merge.Outputs, j.start, j.count, func(out []hardware.Vector) (err error) {
		nonFinite, err = t.batch.runner.backend.Sparse(ctx, out[0], t.difference(j.start, j.count), &sum)
		return err
	})
	if err != nil {
		return err
	}
	return t.batch.count(j, nonFinite)
}
