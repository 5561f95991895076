package shm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxRefused bounds what a host that only sends bad descriptors can make us remember.
const maxRefused = 64

// Table is the plugin's end of the side channel: what was announced, checked,
// and not yet dropped. It is safe for concurrent use.
type Table struct {
	conn *net.UnixConn
	done chan struct{} // closed when receiving has ended

	mu      sync.Mutex
	err     error // why receiving ended
	entries map[uint64]*entry
	refused map[uint64]error
	changed chan struct{} // closed and replaced when entries or refused grow
}

// Attach starts to receive on the inherited descriptor, which it takes over.
// Close ends it.
func Attach(f *os.File) (*Table, error) {
	conn, err := unixConn(f)
	if err != nil {
		return nil, err
	}
	t := &Table{
		conn:    conn,
		done:    make(chan struct{}),
		entries: make(map[uint64]*entry),
		refused: make(map[uint64]error),
		changed: make(chan struct{}),
	}
	go t.receive()
	return t, nil
}

// Done is closed when the host has closed the channel or broken its protocol.
func (t *Table) Done() <-chan struct{} { return t.done }

// Err says why Done is closed.
func (t *Table) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Close stops receiving and unmaps everything; memory still viewed is unmapped
// with its last view. It may be repeated.
func (t *Table) Close() error {
	err := t.conn.Close()
	<-t.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *Table) receive() {
	err := t.receiveAll()
	t.conn.Close()
	t.mu.Lock()
	t.err = fmt.Errorf("%w: %w", ErrClosed, err)
	var unused []*entry
	for id, e := range t.entries {
		delete(t.entries, id)
		if e.drop() {
			unused = append(unused, e)
		}
	}
	t.mu.Unlock()
	for _, e := range unused {
		e.unmap()
	}
	close(t.done)
}

// receiveAll returns io.EOF when the host closes the channel, or what it did wrong.
func (t *Table) receiveAll() error {
	packet := make([]byte, messageSize+1) // one more, to notice longer packets
	rights := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, rn, flags, _, err := t.conn.ReadMsgUnix(packet, rights)
		if err != nil {
			return err
		}
		fds, err := parseRights(rights[:rn])
		if n == 0 && len(fds) == 0 && err == nil {
			return io.EOF
		}
		if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			err = fmt.Errorf("side channel: truncated packet")
		}
		if err == nil {
			err = t.handle(packet[:n], &fds)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
}

func parseRights(b []byte) ([]int, error) {
	if len(b) == 0 {
		return nil, nil
	}
	controls, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("side channel: %w", err)
	}
	var fds []int
	for i := range controls {
		got, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			return fds, fmt.Errorf("side channel: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// handle applies one packet. It empties fds when it keeps the descriptor.
// An error means that the host does not speak the protocol.
func (t *Table) handle(packet []byte, fds *[]int) error {
	m, err := decode(packet)
	if err != nil {
		return err
	}
	if m.kind == kindDrop {
		if len(*fds) != 0 {
			return fmt.Errorf("side channel: drop %d with %d descriptors: want none", m.id, len(*fds))
		}
		t.drop(m.id)
		return nil
	}
	if len(*fds) != 1 {
		return fmt.Errorf("side channel: announcement of %d with %d descriptors: want 1", m.id, len(*fds))
	}
	refusal := m.check((*fds)[0])

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[m.id] != nil || t.refused[m.id] != nil {
		return fmt.Errorf("side channel: %d announced twice", m.id)
	}
	if refusal != nil {
		if len(t.refused) == maxRefused {
			return fmt.Errorf("side channel: more than %d descriptors refused, last %d: %w", maxRefused, m.id, refusal)
		}
		t.refused[m.id] = fmt.Errorf("%w: %d: %w", ErrRefused, m.id, refusal)
	} else {
		t.entries[m.id] = &entry{message: m, fd: (*fds)[0], generation: 1}
		*fds = nil
	}
	close(t.changed)
	t.changed = make(chan struct{})
	return nil
}

// check decides whether fd may ever be mapped.
func (m message) check(fd int) error {
	writable := m.flags&flagWritable != 0
	if m.kind == kindFile {
		return checkFile(fd, int64(m.offset), int64(m.size), writable)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("not a memfd (F_GET_SEALS: %w)", err)
	}
	if seals&sizeSeals != sizeSeals {
		return fmt.Errorf("seals %#x: want at least %#x (seal, shrink, grow)", seals, sizeSeals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if m.offset != 0 || m.size == 0 || st.Size != int64(m.size) {
		return fmt.Errorf("memfd of %d bytes announced as [%d, +%d)", st.Size, m.offset, m.size)
	}
	return checkFile(fd, 0, st.Size, writable)
}

func (t *Table) drop(id uint64) {
	t.mu.Lock()
	e := t.entries[id]
	delete(t.entries, id)
	delete(t.refused, id)
	unused := e != nil && e.drop()
	t.mu.Unlock()
	if unused {
		e.unmap()
	}
}

// Lookup returns a view of all the memory announced as id, for access. RPCs and
// announcements race, so it waits for an id that has not arrived until ctx is
// done. A generation older than one seen before is stale: the memory belongs to
// another tensor now. The caller releases the view.
func (t *Table) Lookup(ctx context.Context, id, generation uint64, access Access) (*View, error) {
	for {
		v, changed, err := t.lookup(id, generation, access)
		if v != nil || err != nil {
			return v, err
		}
		select {
		case <-changed:
		case <-t.done:
			return nil, fmt.Errorf("look up %d: %w", id, t.Err())
		case <-ctx.Done():
			return nil, fmt.Errorf("look up %d: not announced: %w", id, context.Cause(ctx))
		}
	}
}

func (t *Table) lookup(id, generation uint64, access Access) (*View, <-chan struct{}, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.refused[id]; err != nil {
		return nil, nil, err
	}
	e := t.entries[id]
	if e == nil {
		return nil, t.changed, nil
	}
	if generation < e.generation {
		return nil, nil, fmt.Errorf("look up %d: %w: generation %d, now %d", id, ErrStale, generation, e.generation)
	}
	data, err := e.mapped(access)
	if err != nil {
		return nil, nil, fmt.Errorf("look up %d: %w", id, err)
	}
	e.generation = generation
	e.views++
	return &View{table: t, entry: e, data: data}, nil, nil
}
