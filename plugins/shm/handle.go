package shm

import "sync"

// Shared is memory that a Peer can announce: a *Segment or a *File.
type Shared interface {
	// ID is unique in the pool and never reused.
	ID() uint64
	// Generation tells apart successive owners of the same memory; it starts at 1.
	Generation() uint64
	// Size is the number of bytes shared.
	Size() int

	announcement() (message, *handle)
}

// handle is a descriptor and the peers that have been told of it.
type handle struct {
	id uint64
	fd int

	mu      sync.Mutex
	holders map[*Peer]struct{}
}

func (h *handle) hold(p *Peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holders == nil {
		h.holders = make(map[*Peer]struct{})
	}
	h.holders[p] = struct{}{}
}

func (h *handle) forget(p *Peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.holders, p)
}

// dropAll tells every holder to unmap. No lock is held while a peer is called:
// peers call hold and forget under their own.
func (h *handle) dropAll() {
	h.mu.Lock()
	holders := h.holders
	h.holders = nil
	h.mu.Unlock()
	for p := range holders {
		p.drop(h.id)
	}
}
