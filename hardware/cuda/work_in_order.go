package cuda

import (
	"errors"
	"sync"
)

// Lane is a GPU with one queue, on which all its work runs in order, and what
// other processes let it see.
type Lane struct {
	Device *Device

	mu     sync.Mutex
	queue  *Queue
	memory *handles[Address]
	work   Work
}

// OpenMemory gives the address of memory that another process exported. It stays
// open until CloseMemory.
func (l *Lane) OpenMemory(handle []byte) (Address, error) { return l.memory.get(handle) }

// CloseMemory lets go of memory once no work uses it; a handle that is not known
// is passed over.
func (l *Lane) CloseMemory(handle []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.queue.Wait(), l.memory.drop(handle))
}

// Work is what one call starts on a lane.
type Work struct {
	*Queue
	arena     Address
	size, end int       // of the arena, and of what the call has taken of it
	outgrown  []Address // arenas of this call that were too small
}

// arenaAlign is the alignment of scratch memory.
const arenaAlign = 256

// Scratch is device memory that the call may use until its work is done.
func (w *Work) Scratch(size int) (Address, error) {
	size = ceilDiv(max(size, 1), arenaAlign) * arenaAlign
	if w.end+size > w.size {
		grown := max(size, 2*w.size, 1<<20)
		a, err := w.device.Alloc(grown)
		if err != nil {
			return 0, err
		}
		if w.arena != 0 {
			w.outgrown = append(w.outgrown, w.arena)
		}
		w.arena, w.size, w.end = a, grown, 0
	}
	at := w.arena + Address(w.end)
	w.end += size
	return at, nil
}

// restart gives all scratch memory back to the next call. Work of the call
// before may still use it, which the order of the queue takes care of.
func (w *Work) restart() error {
	w.end = 0
	if len(w.outgrown) == 0 {
		return nil
	}
	if err := w.Wait(); err != nil {
		return err
	}
	for len(w.outgrown) > 0 {
		last := len(w.outgrown) - 1
		if err := w.device.Free(w.outgrown[last]); err != nil {
			return err
		}
		w.outgrown = w.outgrown[:last]
	}
	return nil
}

// Do lets start put work on the lane, one call at a time. The work waits for the
// fence ready, and done is reached behind it; nil: begin at once, return when the
// work is done. After an error no work is under way.
func (l *Lane) Do(ready, done *Fence, start func(*Work) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.do(ready, done, start)
	if err != nil || done == nil {
		err = errors.Join(err, l.queue.Wait())
	}
	return err
}

func (l *Lane) do(ready, done *Fence, start func(*Work) error) error {
	l.work.Queue = l.queue
	if err := l.work.restart(); err != nil {
		return err
	}
	if ready != nil {
		if err := l.queue.await(*ready); err != nil {
			return err
		}
	}
	if err := start(&l.work); err != nil {
		return err
	}
	if done == nil {
		return nil
	}
	return l.queue.reach(*done)
}
