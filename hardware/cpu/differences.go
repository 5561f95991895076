package cpu

// #include "support.h"
import "C"

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// mostMultiplied bounds the sources of Products, whose partial sums share the
// scratch of the sources.
const mostMultiplied = 64

func (b *backend) Products(ctx context.Context, d hardware.Differences, product []float64) ([]int64, error) {
	n := len(d.In)
	if n > mostMultiplied || len(product) != n*n {
		return nil, fmt.Errorf("cpu: %d sources, %d products: want at most %d sources, and their square", n, len(product), mostMultiplied)
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		sums, err := array[float64](&c.memory, n*n)
		if err != nil {
			return err
		}
		p := C.trivium_products{of: c.of, product: (*C.double)(&sums[0])}
		err = c.tiles(ctx, &p.of, func() { C.trivium_run_products(b.summing, &p, c.scratch) })
		for i := range n {
			for j := range i + 1 {
				product[i*n+j] += sums[i*n+j]
				if i != j {
					product[j*n+i] += sums[i*n+j]
				}
			}
		}
		return err
	})
}

func (b *backend) Magnitudes(ctx context.Context, d hardware.Differences, walks []hardware.Walk) ([]int64, error) {
	for _, w := range walks {
		if err := checkWalk(w); err != nil || w.Source < 0 || w.Source >= len(d.In) {
			return nil, cmp.Or(err, fmt.Errorf("cpu: walk over source %d of %d", w.Source, len(d.In)))
		}
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		list, err := array[C.trivium_walk](&c.memory, len(walks))
		if err != nil {
			return err
		}
		for i, w := range walks {
			list[i] = c.walk(w)
		}
		m := C.trivium_magnitudes{of: c.of, walks: C.int32_t(len(walks))}
		if len(list) > 0 {
			m.walk = &list[0]
		}
		return c.tiles(ctx, &m.of, func() { C.trivium_run_magnitudes(b.summing, &m, c.scratch) })
	})
}

func (b *backend) Sparse(ctx context.Context, out hardware.Vector, d hardware.Differences, s *hardware.SparseSum) ([]int64, error) {
	n := len(d.In)
	if d.Base == nil || len(s.Weights) != n || len(s.Low) != n || len(s.High) != n || !matches(out, d) {
		return nil, fmt.Errorf("cpu: sum of %d sources with %d weights, %d and %d limits into %d elements: want a base, one of each for a source, and as many elements", n, len(s.Weights), len(s.Low), len(s.High), out.Len)
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		weights, err := array[float64](&c.memory, n)
		if err != nil {
			return err
		}
		limits, err := array[float32](&c.memory, 2*n)
		if err != nil {
			return err
		}
		copy(weights, s.Weights)
		copy(limits, s.Low)
		copy(limits[n:], s.High)
		c.pinned.Pin(out.Data)
		p := C.trivium_sparse{of: c.of, out: out.Data, out_dtype: vectorDtypes[out.Dtype],
			weight: (*C.double)(&weights[0]), low: (*C.float)(&limits[0]), high: (*C.float)(&limits[n]),
			factor: C.double(s.Factor), scale: C.double(s.Scale), seed: C.uint64_t(s.Seed), element: C.int64_t(s.Element),
			threshold: C.uint64_t(math.Ceil(min(1, s.Density) * (1 << 53))), consensus: flagOf(s.Consensus), normalise: flagOf(s.Normalise)}
		return c.tiles(ctx, &p.of, func() { C.trivium_run_sparse(b.summing, &p, c.scratch) })
	})
}

func (b *backend) Ranked(ctx context.Context, out hardware.Vector, d hardware.Differences, r *hardware.RankedSum) ([]int64, error) {
	n, row := len(d.In), int64(len(r.Chance))
	if d.Base == nil || len(r.Weights) != n || row == 0 || row > math.MaxUint32 || d.Base.Len%row != 0 || !matches(out, d) {
		return nil, fmt.Errorf("cpu: sum of %d sources with %d weights and %d chances into %d elements: want a base, a weight for each source, and whole rows of as many elements as chances", n, len(r.Weights), row, out.Len)
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		weights, err := array[float64](&c.memory, n)
		if err != nil {
			return err
		}
		copy(weights, r.Weights)
		room, err := c.memory.alloc(C.size_t(row) * C.trivium_ranked_bytes(C.int32_t(n)))
		if err != nil {
			return err
		}
		c.pinned.Pin(out.Data)
		c.pinned.Pin(&r.Chance[0])
		p := C.trivium_ranked{of: c.of, out: out.Data, out_dtype: vectorDtypes[out.Dtype], weight: (*C.double)(&weights[0]),
			chance: (*C.double)(&r.Chance[0]), room: (*C.char)(room), scale: C.double(r.Scale), seed: C.uint64_t(r.Seed), element: C.int64_t(r.Element),
			row: C.int64_t(row), consensus: flagOf(r.Consensus), normalise: flagOf(r.Normalise)}
		return c.steps(ctx, &p.of, row*max(1, C.TRIVIUM_SUM_TILE/row), func() { C.trivium_run_ranked(b.summing, &p, c.scratch) })
	})
}

func (b *backend) Variances(ctx context.Context, d hardware.Differences, w hardware.Walk) ([]int64, error) {
	if err := checkWalk(w); err != nil || d.Base == nil {
		return nil, cmp.Or(err, errNoBase)
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		v := C.trivium_variances{of: c.of, walk: c.walk(w)}
		return c.tiles(ctx, &v.of, func() { C.trivium_run_variances(b.summing, &v, c.scratch) })
	})
}

func (b *backend) Squares(ctx context.Context, d hardware.Differences, limit float32, sum []float64) ([]int64, error) {
	if d.Base == nil || len(sum) != len(d.In) {
		return nil, fmt.Errorf("cpu: %d sums of squares for %d sources: want one for each, and a base", len(sum), len(d.In))
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		c.pinned.Pin(&sum[0])
		q := C.trivium_squares{of: c.of, square: (*C.double)(&sum[0]), limit: C.float(limit)}
		return c.tiles(ctx, &q.of, func() { C.trivium_run_squares(b.summing, &q, c.scratch) })
	})
}

func (b *backend) Majority(ctx context.Context, out hardware.Vector, d hardware.Differences, limit float32, weights []float64) ([]int64, error) {
	if d.Base == nil || len(weights) != len(d.In) || !matches(out, d) {
		return nil, fmt.Errorf("cpu: mean of %d sources with %d weights into %d elements: want a base, a weight for each source, and as many elements", len(d.In), len(weights), out.Len)
	}
	return b.eachTile(ctx, d, func(c *differenceCall) error {
		c.pinned.Pin(out.Data)
		c.pinned.Pin(&weights[0])
		m := C.trivium_majority{of: c.of, out: out.Data, out_dtype: vectorDtypes[out.Dtype], weight: (*C.double)(&weights[0]), limit: C.float(limit)}
		return c.tiles(ctx, &m.of, func() { C.trivium_run_majority(b.summing, &m, c.scratch) })
	})
}

var errNoBase = errors.New("cpu: variances of differences: want a base")

// matches says whether a result has room for the differences, which have a base.
func matches(out hardware.Vector, d hardware.Differences) bool {
	return out.Len == d.Base.Len && int(out.Dtype) < len(vectorDtypes)
}

func checkWalk(w hardware.Walk) error {
	if w.Shift < 0 || w.Known <= w.Shift || w.Known > 32 || len(w.Counts) != 1<<(w.Known-w.Shift) {
		return fmt.Errorf("cpu: walk over bits %d to %d with %d counts: want 0 <= shift < known <= 32, and 2^(known-shift) counts", w.Shift, w.Known, len(w.Counts))
	}
	return nil
}

// walk pins the counts of w.
func (c *differenceCall) walk(w hardware.Walk) C.trivium_walk {
	c.pinned.Pin(&w.Counts[0])
	return C.trivium_walk{counts: (*C.int64_t)(&w.Counts[0]), prefix: C.uint32_t(w.Prefix), source: C.int32_t(w.Source), known: C.int32_t(w.Known), shift: C.int32_t(w.Shift)}
}

// differenceCall is the C memory of one call.
type differenceCall struct {
	of      C.trivium_differences
	scratch unsafe.Pointer
	length  int64
	memory  memory
	pinned  runtime.Pinner
}

// eachTile prepares a call, runs it and gives the NaN and Inf of each source and
// then of the base.
func (b *backend) eachTile(ctx context.Context, d hardware.Differences, run func(c *differenceCall) error) ([]int64, error) {
	operands := d.In
	if d.Base != nil {
		operands = append(d.In[:len(d.In):len(d.In)], *d.Base)
	}
	if err := checkSum(operands[:1], operands, [][]float64{make([]float64, len(operands))}); err != nil {
		return nil, err
	}
	c := &differenceCall{length: operands[0].Len}
	defer c.memory.free()
	defer c.pinned.Unpin()
	pointers, err := array[unsafe.Pointer](&c.memory, len(operands))
	if err != nil {
		return nil, err
	}
	dtypes, err := array[C.int32_t](&c.memory, len(operands))
	if err != nil {
		return nil, err
	}
	counts, err := array[int64](&c.memory, len(operands))
	if err != nil {
		return nil, err
	}
	if c.scratch, err = c.memory.alloc(b.summing.difference_bytes + C.size_t(len(d.In)*C.TRIVIUM_DIFFERENCE_BYTES)); err != nil {
		return nil, err
	}
	for i, v := range operands {
		if v.Data != nil {
			c.pinned.Pin(v.Data)
		}
		pointers[i], dtypes[i] = v.Data, vectorDtypes[v.Dtype]
	}
	c.of = C.trivium_differences{in: &pointers[0], in_dtype: &dtypes[0], nonfinite: (*C.int64_t)(&counts[0]), sources: C.int32_t(len(d.In)), based: flagOf(d.Base != nil)}
	if err := run(c); err != nil {
		return nil, err
	}
	return append([]int64(nil), counts...), nil
}

// tiles runs a kernel over all elements, which of names.
func (c *differenceCall) tiles(ctx context.Context, of *C.trivium_differences, kernel func()) error {
	return c.steps(ctx, of, C.TRIVIUM_SUM_TILE, kernel)
}

func (c *differenceCall) steps(ctx context.Context, of *C.trivium_differences, step int64, kernel func()) error {
	for first := int64(0); first < c.length; first += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		of.first, of.count = C.int64_t(first), C.int64_t(min(step, c.length-first))
		kernel()
	}
	return nil
}
