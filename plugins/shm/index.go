package shm

import (
	"slices"
	"sort"
	"sync/atomic"
)

// index finds the segment that contains an address. Lookups take no lock:
// writers, serialised by the pool, replace a sorted copy.
type index struct {
	ranges atomic.Pointer[[]addressRange]
}

type addressRange struct {
	base, end uintptr
	segment   *Segment
}

func (x *index) load() []addressRange {
	if p := x.ranges.Load(); p != nil {
		return *p
	}
	return nil
}

func (x *index) insert(s *Segment) {
	old := x.load()
	base := s.Addr()
	at := sort.Search(len(old), func(i int) bool { return old[i].base >= base })
	next := make([]addressRange, 0, len(old)+1)
	next = append(next, old[:at]...)
	next = append(next, addressRange{base, base + uintptr(s.Size()), s})
	next = append(next, old[at:]...)
	x.ranges.Store(&next)
}

func (x *index) remove(segments []*Segment) {
	gone := make(map[*Segment]bool, len(segments))
	for _, s := range segments {
		gone[s] = true
	}
	next := slices.DeleteFunc(slices.Clone(x.load()), func(r addressRange) bool { return gone[r.segment] })
	x.ranges.Store(&next)
}

// find returns the segment that contains all of [addr, addr+size), or nil.
func (x *index) find(addr uintptr, size int) (*Segment, int64) {
	ranges := x.load()
	low, high := 0, len(ranges)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if ranges[mid].end <= addr {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == len(ranges) || addr < ranges[low].base || size < 0 || uintptr(size) > ranges[low].end-addr {
		return nil, 0
	}
	return ranges[low].segment, int64(addr - ranges[low].base)
}
