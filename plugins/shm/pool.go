package shm

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const defaultRetain = 2 << 30

// Options configure a Pool; the zero value is the default.
type Options struct {
	// RetainBytes bounds the memory kept for reuse. 0 means 2 GiB, or an eighth
	// of the machine's memory if that is less; negative keeps nothing.
	RetainBytes int64
}

// Stats is a snapshot of a Pool.
type Stats struct {
	LiveBytes   int64  `json:"live_bytes"`
	PooledBytes int64  `json:"pooled_bytes"`
	Live        int    `json:"live"`
	Pooled      int    `json:"pooled"`
	Created     uint64 `json:"created"`
	Reused      uint64 `json:"reused"`
}

// Pool creates segments and keeps returned ones, because the first touch of
// fresh memory costs far more than any copy. It is safe for concurrent use.
type Pool struct {
	retain int64
	live   index // every mapped segment, pooled ones included

	mu     sync.Mutex
	closed bool
	nextID uint64
	clock  uint64
	free   map[int][]*Segment // by class size, most recently pooled last
	stats  Stats
}

// NewPool returns an empty pool. Close releases what it keeps.
func NewPool(o Options) (*Pool, error) {
	p := &Pool{retain: o.RetainBytes, free: make(map[int][]*Segment)}
	if p.retain != 0 {
		return p, nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("sysinfo: %w", err)
	}
	p.retain = min(defaultRetain, int64(info.Totalram)*int64(info.Unit)/8)
	return p, nil
}

// Get returns a segment of at least size bytes with one reference, warm if the
// pool has one. Fresh memory is zero, reused memory is not.
func (p *Pool) Get(size int) (*Segment, error) {
	class, err := classSize(size)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("get %d bytes: %w", size, ErrClosed)
	}
	s, err := p.take(class)
	if err != nil {
		return nil, err
	}
	s.generation.Add(1)
	s.refs.Store(1)
	p.stats.Live++
	p.stats.LiveBytes += int64(class)
	return s, nil
}

func (p *Pool) take(class int) (*Segment, error) {
	if free := p.free[class]; len(free) > 0 {
		last := len(free) - 1
		s := free[last]
		p.setFree(class, free[:last])
		free[last] = nil
		p.stats.Pooled--
		p.stats.PooledBytes -= int64(class)
		p.stats.Reused++
		return s, nil
	}
	s, err := newSegment(p.newID(), class)
	if err != nil {
		return nil, err
	}
	p.live.insert(s)
	p.stats.Created++
	return s, nil
}

// Put gives one reference back. The last one returns the memory to the pool,
// which releases its longest unused segments when it keeps too much. The error
// says that the segment was already given back.
func (p *Pool) Put(s *Segment) error {
	last, err := s.release()
	if err != nil || !last {
		return err
	}
	return destroyAll(p.pool(s))
}

// pool keeps s and returns the segments that no longer fit.
func (p *Pool) pool(s *Segment) []*Segment {
	p.mu.Lock()
	defer p.mu.Unlock()
	class := s.Size()
	p.stats.Live--
	p.stats.LiveBytes -= int64(class)
	if int64(class) > p.retain {
		// Keeping it would cost every other segment its place.
		gone := []*Segment{s}
		p.live.remove(gone)
		return gone
	}
	p.clock++
	s.freed = p.clock
	p.free[class] = append(p.free[class], s)
	p.stats.Pooled++
	p.stats.PooledBytes += int64(class)
	if p.closed {
		return p.evict(0)
	}
	return p.evict(p.retain)
}

// evict removes the longest unused segments until at most keep bytes are pooled.
func (p *Pool) evict(keep int64) []*Segment {
	var evicted []*Segment
	for p.stats.PooledBytes > keep {
		class := p.oldestClass()
		free := p.free[class]
		evicted = append(evicted, free[0])
		free[0] = nil
		p.setFree(class, free[1:])
		p.stats.Pooled--
		p.stats.PooledBytes -= int64(class)
	}
	if len(evicted) > 0 {
		p.live.remove(evicted)
	}
	return evicted
}

// oldestClass is the class of the longest unused segment. There are at most a
// few dozen classes, and the oldest of each comes first.
func (p *Pool) oldestClass() int {
	oldest, at := 0, uint64(0)
	for class, free := range p.free {
		if oldest == 0 || free[0].freed < at {
			oldest, at = class, free[0].freed
		}
	}
	return oldest
}

func (p *Pool) setFree(class int, free []*Segment) {
	if len(free) == 0 {
		delete(p.free, class)
		return
	}
	p.free[class] = free
}

func (p *Pool) newID() uint64 {
	p.nextID++
	return p.nextID
}

// Find returns the live segment that contains all of [addr, addr+size), and the
// offset of addr in it. The memory stays live only while somebody holds a
// reference: the caller must know that one is held, or Retain.
func (p *Pool) Find(addr uintptr, size int) (s *Segment, offset int64, ok bool) {
	s, offset = p.live.find(addr, size)
	if s == nil || s.refs.Load() == 0 {
		return nil, 0, false
	}
	return s, offset, true
}

// Stats returns the current figures.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Close releases the pooled segments; live ones follow when they are put back.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	evicted := p.evict(0)
	p.mu.Unlock()
	return destroyAll(evicted)
}

func destroyAll(segments []*Segment) error {
	var errs []error
	for _, s := range segments {
		errs = append(errs, s.destroy())
	}
	return errors.Join(errs...)
}
