package tensor

import (
	"fmt"
	"math"
	"os"
	"sort"
	"sync"

	"golang.org/x/sys/unix"
)

// Cut is a dense tensor whose parts lie in several files, as the ranks of a
// training run write it. Its bytes are counted as if it were in one piece.
type Cut struct {
	Item  int64 // bytes of an element
	Shape []int64
	Parts []Part // they tile the shape; none is empty

	once sync.Once
	laid []runs // of each part
	run  int64  // the shortest
}

// Part is a box of a cut tensor, row-major in a file, which it borrows.
type Part struct {
	File      *os.File
	Offset    int64
	At, Shape []int64 // where the box begins, and its sizes
}

// Runs below narrow bytes are read many at a time and then copied to their places:
// to the system, a place costs more than so small a copy.
const (
	narrow = 256
	group  = 64 << 10
	places = 1024 // that the system takes at a time
)

// runs are the pieces of a part that are in one piece in the tensor too.
type runs struct {
	part    *Part
	size    int64   // bytes of each
	count   int64   // how many, one after the other in the file
	first   int64   // byte of the tensor at which the first begins
	end     int64   // and behind the last
	shape   []int64 // of the axes that tell one run from the next
	strides []int64 // of those axes, in bytes of the tensor
}

// layout is the runs of each part. Ranks may be many, and tiles are: it is found once.
func (c *Cut) layout() []runs {
	c.once.Do(func() {
		c.laid, c.run = make([]runs, len(c.Parts)), math.MaxInt64
		for i := range c.Parts {
			c.laid[i] = c.runs(&c.Parts[i])
			c.run = min(c.run, c.laid[i].size)
		}
	})
	return c.laid
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
	r.end = r.at(r.count-1) + r.size
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
	if start >= r.end || end <= r.first {
		return 0, 0
	}
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
	layout := c.layout()
	for i := range layout {
		n, err := layout[i].read(to, start)
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

// read copies what a part has of the bytes from start on. Runs lie one after
// the other in the file, so that one call reads many, each to its place.
func (r *runs) read(to []byte, start int64) (filled int64, err error) {
	p, end := r.part, start+int64(len(to))
	first, last := r.within(start, end)
	step := int64(places)
	if r.size < narrow {
		step = group / r.size
	}
	var scratch []byte
	for i := first; i < last; i += step {
		n := min(step, last-i)
		pieces, from, size := make([][]byte, n), int64(0), int64(0)
		for k := range n {
			at := r.at(i + k)
			begin, stop := max(at, start), min(at+r.size, end)
			if k == 0 {
				from = p.Offset + i*r.size + begin - at
			}
			pieces[k] = to[begin-start : stop-start]
			size += stop - begin
		}
		if r.size >= narrow {
			err = readPieces(p.File, pieces, from, size)
		} else {
			if scratch == nil {
				scratch = make([]byte, min(group, (last-first)*r.size))
			}
			if _, err = p.File.ReadAt(scratch[:size], from); err == nil {
				spread(pieces, scratch)
			}
		}
		if err != nil {
			return filled, err
		}
		filled += size
	}
	return filled, nil
}

// readPieces fills pieces with size bytes of the file, from a place on.
func readPieces(file *os.File, pieces [][]byte, from, size int64) error {
	n, err := unix.Preadv(int(file.Fd()), pieces, from)
	if err == nil && int64(n) == size {
		return nil
	}
	for _, piece := range pieces { // a signal came, or the file ends: the plain way tells which
		if _, err := file.ReadAt(piece, from); err != nil {
			return err
		}
		from += int64(len(piece))
	}
	return nil
}

func spread(pieces [][]byte, from []byte) {
	for _, piece := range pieces {
		from = from[copy(piece, from):]
	}
}

// Run is how many bytes of the tensor lie in one piece everywhere.
func (c *Cut) Run() int64 {
	c.layout()
	return c.run
}

// wide is the element from which on an odd address is a reason to copy: the
// kernels read narrower ones wherever they lie, and archives of torch.save, one
// after the other, begin anywhere.
const wide = 8

// mapRange gives bytes from start on in memory: as they are in a file where one
// has them in one piece, else a copy, in the room that is given if there is any.
func (c *Cut) mapRange(start, length int64, room func(size int64) []byte) (*Mapping, error) {
	layout := c.layout()
	for i := range layout {
		r := &layout[i]
		first, last := r.within(start, start+length)
		if first == last {
			continue
		}
		inside := start - r.at(first)
		at := r.part.Offset + first*r.size + inside
		if inside < 0 || inside+length > r.size || c.Item >= wide && at%c.Item != 0 {
			break
		}
		return Extent{File: r.part.File, Offset: at, Size: length}.Map(0, length)
	}
	if room != nil {
		m := &Mapping{bytes: room(length), copied: true}
		return m, c.ReadAt(m.bytes, start)
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
	layout := c.layout()
	for i := range layout {
		r := &layout[i]
		if first, last := r.within(start, start+length); first < last {
			Extent{File: r.part.File, Offset: r.part.Offset}.WillNeed(first*r.size, (last-first)*r.size)
		}
	}
}
