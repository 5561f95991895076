package tensor

import "fmt"

// Window is a range of bytes of a cut tensor whose pieces are mapped where they lie,
// for those who put it together a little at a time: so the copy stays in the cache.
type Window struct{ pieces []piece }

// piece is some runs of a part.
type piece struct {
	runs    *runs
	first   int64 // run that the mapping begins with
	mapping *Mapping
}

// Window maps the pieces of length bytes from start on. The caller closes it; what
// is said of Extent.Map is true here.
func (c *Cut) Window(start, length int64) (*Window, error) {
	w, layout := &Window{}, c.layout()
	for i := range layout {
		r := &layout[i]
		first, last := r.within(start, start+length)
		if first == last {
			continue
		}
		mapping, err := Extent{File: r.part.File, Offset: r.part.Offset + first*r.size, Size: (last - first) * r.size}.Map(0, (last-first)*r.size)
		if err != nil {
			_ = w.Close() // of memory that was mapped: it cannot fail
			return nil, err
		}
		w.pieces = append(w.pieces, piece{r, first, mapping})
	}
	return w, nil
}

// CopyTo puts the tensor's bytes from start on, which lie in the window, together.
// It is an error where they do not.
func (w *Window) CopyTo(to []byte, start int64) error {
	filled := 0
	for i := range w.pieces {
		filled += w.pieces[i].copyTo(to, start)
	}
	if filled != len(to) {
		return fmt.Errorf("the parts of a cut tensor give %d bytes for %d: they do not tile it, or reach out of what is mapped", filled, len(to))
	}
	return nil
}

func (p *piece) copyTo(to []byte, start int64) int {
	r, end, filled := p.runs, start+int64(len(to)), 0
	first, last := r.within(start, end)
	first, last = max(first, p.first), min(last, p.first+int64(len(p.mapping.bytes))/r.size)
	if first >= last {
		return 0
	}
	inner := len(r.shape) - 1
	at, row := r.at(first), int64(0)
	if inner >= 0 {
		row = first % r.shape[inner]
	}
	for i := first; i < last; i++ {
		begin, stop := max(at, start), min(at+r.size, end)
		filled += copy(to[begin-start:stop-start], p.mapping.bytes[(i-p.first)*r.size+begin-at:])
		if inner < 0 {
			continue // the only one
		}
		if row++; row < r.shape[inner] {
			at += r.strides[inner]
		} else if row = 0; i+1 < last {
			at = r.at(i + 1)
		}
	}
	return filled
}

// Close unmaps.
func (w *Window) Close() error {
	for _, p := range w.pieces {
		if err := p.mapping.Close(); err != nil {
			return err
		}
	}
	return nil
}
