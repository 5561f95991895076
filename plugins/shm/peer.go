package shm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Peer is the host's end of the side channel to one plugin process. It sends
// each descriptor once. It is safe for concurrent use.
type Peer struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	// sending is held while packets are written; a channel, so that waiting for
	// a plugin that does not read ends with the caller's context.
	sending chan struct{}

	mu      sync.Mutex
	closed  bool
	sent    map[uint64]*handle
	dropped []uint64 // announced, dropped, and not yet told
}

// NewPair returns the host's end and the descriptor to start the plugin process
// with. Close the latter once the process runs.
func NewPair() (*Peer, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	child := os.NewFile(uintptr(fds[1]), "trivium-side-channel")
	conn, err := unixConn(os.NewFile(uintptr(fds[0]), "trivium-side-channel"))
	if err != nil {
		child.Close()
		return nil, nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		child.Close()
		conn.Close()
		return nil, nil, fmt.Errorf("side channel: %w", err)
	}
	return &Peer{conn: conn, raw: raw, sending: make(chan struct{}, 1), sent: make(map[uint64]*handle)}, child, nil
}

// unixConn hands f to the network poller, so that reads and writes have
// deadlines and end on Close. It closes f.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("side channel: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok || conn.LocalAddr().Network() != "unixpacket" {
		c.Close()
		return nil, fmt.Errorf("side channel: %s socket: want a SEQPACKET unix socket", c.LocalAddr().Network())
	}
	return conn, nil
}

// Ensure announces s unless the plugin has it already. The caller holds a
// reference to s (or has not closed it) until Ensure returns. It waits for room
// in the channel until ctx is done.
func (p *Peer) Ensure(ctx context.Context, s Shared) error {
	m, h := s.announcement()
	if known, err := p.knows(h); known || err != nil {
		return err
	}
	select {
	case p.sending <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("announce %d: %w", h.id, context.Cause(ctx))
	}
	defer func() {
		<-p.sending
		p.flush()
	}()
	if known, err := p.knows(h); known || err != nil {
		return err
	}
	if err := p.sendDropped(func(m message) error { return p.send(ctx, m, -1) }); err != nil {
		return err
	}
	if err := p.send(ctx, m, h.fd); err != nil {
		return fmt.Errorf("announce %d: %w", h.id, err)
	}
	return p.remember(h)
}

func (p *Peer) knows(h *handle) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, fmt.Errorf("announce %d: %w", h.id, ErrClosed)
	}
	known, ok := p.sent[h.id]
	if ok && known != h {
		return false, fmt.Errorf("announce %d: %w: a peer serves one pool", h.id, ErrRefused)
	}
	return ok, nil
}

func (p *Peer) remember(h *handle) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("announce %d: %w", h.id, ErrClosed)
	}
	p.sent[h.id] = h
	h.hold(p)
	return nil
}

// drop tells the plugin to unmap, now if there is room in the channel and
// nobody is sending, else before the next announcement. It never waits.
func (p *Peer) drop(id uint64) {
	p.mu.Lock()
	if _, ok := p.sent[id]; ok && !p.closed {
		delete(p.sent, id)
		p.dropped = append(p.dropped, id)
	}
	p.mu.Unlock()
	p.flush()
}

func (p *Peer) flush() {
	for p.hasDropped() {
		select {
		case p.sending <- struct{}{}:
		default:
			return // whoever is sending flushes afterwards
		}
		err := p.sendDropped(func(m message) error { return p.write(m, -1, false) })
		<-p.sending
		if err != nil {
			return // what does not fit stays queued; a dead plugin has unmapped already
		}
	}
}

func (p *Peer) hasDropped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.dropped) > 0
}

// sendDropped sends the queued drops. The caller holds sending.
func (p *Peer) sendDropped(send func(message) error) error {
	for {
		p.mu.Lock()
		if len(p.dropped) == 0 {
			p.mu.Unlock()
			return nil
		}
		id := p.dropped[0]
		p.mu.Unlock()
		if err := send(message{kind: kindDrop, id: id}); err != nil {
			return fmt.Errorf("drop %d: %w", id, err)
		}
		p.mu.Lock()
		if len(p.dropped) > 0 { // Close may have emptied it
			p.dropped = p.dropped[1:]
		}
		p.mu.Unlock()
	}
}

// send writes one packet, waiting for room until ctx is done. The caller holds sending.
func (p *Peer) send(ctx context.Context, m message, fd int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	defer p.writeUntil(ctx)()
	err := p.write(m, fd, true)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// write writes one packet, with fd unless it is negative.
func (p *Peer) write(m message, fd int, wait bool) error {
	packet := m.encode()
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	var err error
	waitErr := p.raw.Write(func(s uintptr) bool {
		// MSG_NOSIGNAL: the host may be a library in a process that does not ignore SIGPIPE.
		_, err = unix.SendmsgN(int(s), packet[:], rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return !wait || err != unix.EAGAIN
	})
	switch {
	case errors.Is(waitErr, os.ErrDeadlineExceeded):
		return waitErr
	case waitErr != nil:
		return fmt.Errorf("%w: %w", ErrClosed, waitErr)
	case err == unix.EPIPE || err == unix.ECONNRESET:
		return fmt.Errorf("%w: the plugin process has closed the side channel", ErrClosed)
	}
	return err
}

// writeUntil makes writes fail once ctx is done, until the returned function is called.
func (p *Peer) writeUntil(ctx context.Context) (restore func()) {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		p.conn.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	return func() {
		if !stop() {
			<-expired
			p.conn.SetWriteDeadline(time.Time{})
		}
	}
}

// Close ends the channel; the plugin's Table unmaps what no view holds. It may be repeated.
func (p *Peer) Close() error {
	p.mu.Lock()
	sent := p.sent
	wasClosed := p.closed
	p.closed, p.sent, p.dropped = true, nil, nil
	p.mu.Unlock()
	if wasClosed {
		return nil
	}
	for _, h := range sent {
		h.forget(p)
	}
	return p.conn.Close()
}
