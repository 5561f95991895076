package tensor

import (
	"fmt"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// Cut is a dense tensor whose parts lie in several files, as the ranks of a
// training run write it. Its bytes are counted as if it were in one piece.
type Cut struct {
	Item  int64 // bytes of an element
	Shape []int64
	Parts []Part // they tile the shape; none is empty
}

// Part is a box of a cut tensor, row-major in a file, which it borrows.
type Part struct {
	File      *os.File
	Offset    int64
	At, Shape []int64 // where the box begins, and its sizes
}

// narrow is the run below which several are read at a time.
const (
	narrow = 16 << 10
	group  = 256 << 10
)

// runs are the pieces of a part that are in one piece in the tensor too.
type runs struct {
	part    *Part
	size    int64   // bytes of each
	count   int64   // how many, one after the other in the file
	first   int64   // byte of the tensor at which the first begins
	shape   []int64 // of the axes that tell one run from the next
	strides []int64 // of those axes, in bytes of the tensor
}

func (c *Cut) runs(p *Part) runs {
	r := runs{part: p, size: c.Item, count: 1}
	axis, stride := len(c.Shape)-1, c.Item
	for ; axis >= 0; axis-- { // whole axes, and the first that is not
		r.size *= p.Shape[axis]
		r.first += p.At[axis] * stride
		stride *= c.Shape[axis]
		if p.Shape[axis] != c.Shape[axis] {
			break
		}
	}
	axis = max(axis, 0)
	r.shape, r.strides = p.Shape[:axis], make([]int64, axis)
	for axis--; axis >= 0; axis-- {
		r.strides[axis] = stride
		r.first += p.At[axis] * stride
		r.count *= p.Shape[axis]
		stride *= c.Shape[axis]
	}
	return r
}

// at is the byte of the tensor at which run i begins.
func (r *runs) at(i int64) int64 {
	at := r.first
	for axis := len(r.shape) - 1; axis >= 0; axis-- {
		at += i % r.shape[axis] * r.strides[axis]
		i /= r.shape[axis]
	}
	return at
}

// within gives the runs that bytes [start, end) of the tensor touch.
func (r *runs) within(start, end int64) (first, last int64) {
	after := func(bound int64) int64 { // the first run that ends behind this byte
		return int64(sort.Search(int(r.count), func(i int) bool { return r.at(int64(i))+r.size > bound }))
	}
	first = after(start)
	last = first
	if first < r.count && r.at(first) < end {
		if last = after(end); last < r.count && r.at(last) < end {
			last++
		}
	}
	return first, last
}

// ReadAt fills to with the tensor's bytes from start on.
func (c *Cut) ReadAt(to []byte, start int64) error {
	filled := int64(0)
	for i := range c.Parts {
		n, err := c.readPart(&c.Parts[i], to, start)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Parts[i].File.Name(), err)
		}
		filled += n
	}
	if filled != int64(len(to)) {
		return fmt.Errorf("the parts of a cut tensor give %d bytes for %d: they do not tile it", filled, len(to))
	}
	return nil
}

// readPart copies what a part has of the bytes from start on.
func (c *Cut) readPart(p *Part, to []byte, start int64) (filled int64, err error) {
	r, end := c.runs(p), start+int64(len(to))
	first, last := r.within(start, end)
	step := int64(1)
	if r.size < narrow {
		step = group / r.size
	}
	var scratch []byte
	for i := first; i < last; i += step {
		n := min(step, last-i)
		if n == 1 {
			begin, stop := max(r.at(i), start), min(r.at(i)+r.size, end)
			if _, err := p.File.ReadAt(to[begin-start:stop-start], p.Offset+i*r.size+begin-r.at(i)); err != nil {
				return filled, err
			}
			filled += stop - begin
			continue
		}
		if scratch == nil {
			scratch = make([]byte, n*r.size)
		}
		if _, err := p.File.ReadAt(scratch[:n*r.size], p.Offset+i*r.size); err != nil {
			return filled, err
		}
		for k := range n {
			at := r.at(i + k)
			begin, stop := max(at, start), min(at+r.size, end)
			filled += int64(copy(to[begin-start:stop-start], scratch[k*r.size+begin-at:]))
		}
	}
	return filled, nil
}

// wide is the element from which on an odd address is a reason to copy: the
// kernels read narrower ones wherever they lie, and archives of torch.save, one
// after the other, begin anywhere.
const wide = 8

// mapRange gives bytes from start on in memory: as they are in a file where one
// has them in one piece, else a copy.
func (c *Cut) mapRange(start, length int64) (*Mapping, error) {
	for i := range c.Parts {
		p := &c.Parts[i]
		r := c.runs(p)
		first, last := r.within(start, start+length)
		if first == last {
			continue
		}
		inside := start - r.at(first)
		at := p.Offset + first*r.size + inside
		if inside < 0 || inside+length > r.size || c.Item >= wide && at%c.Item != 0 {
			break
		}
		return Extent{File: p.File, Offset: at, Size: length}.Map(0, length)
	}
	pages, err := unix.Mmap(-1, 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("%d bytes for a piece of a cut tensor: %w", length, err)
	}
	if err := c.ReadAt(pages, start); err != nil {
		_ = unix.Munmap(pages) // of memory just mapped: it cannot fail
		return nil, err
	}
	return &Mapping{bytes: pages, pages: pages}, nil
}

// willNeed is advice for each part that has some of the bytes.
func (c *Cut) willNeed(start, length int64) {
	for i := range c.Parts {
		r := c.runs(&c.Parts[i])
		if first, last := r.within(start, start+length); first < last {
			Extent{File: r.part.File, Offset: r.part.Offset}.WillNeed(first*r.size, (last-first)*r.size)
		}
	}
}
