package lane

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLost says that the plugin's end is gone, or that Close was called.
var ErrLost = errors.New("lane: the other end is gone")

// ErrTooLarge says that a request does not fit into one packet.
var ErrTooLarge = errors.New("lane: the request is too large")

// Caller is the host's end. Whoever has acquired it may use it, one at a time.
type Caller struct {
	fd     int
	wakeFD int // an eventfd: ends a Wait early
	limit  int // bytes of a reply

	mu     sync.Mutex
	held   bool
	served bool // the plugin has said hello
	broken bool // what came was not of the contract: the lane is not used again
	closed bool

	packet  []byte // of the holder
	reply   []byte // what has come of it
	waiting uint64 // the call it waited for last
	owed    uint64 // the call that was sent and not answered yet; 0: none
}

// NewPair returns the host's end and the descriptor to start the plugin process
// with; close the latter once the process runs. Replies of more than limit
// bytes break the lane.
func NewPair(limit int) (*Caller, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("lane: socketpair: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("lane: eventfd: %w", err)
	}
	return &Caller{fd: fds[0], wakeFD: wake, limit: limit, packet: make([]byte, MaxPacket)}, os.NewFile(uintptr(fds[1]), "trivium-lane"), nil
}

// Acquire takes the lane for one call. It does not wait: false means that the
// lane is taken, lost, not served by the plugin, or that the plugin is still to
// answer a call that was cancelled.
func (c *Caller) Acquire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held || c.closed || c.broken || !c.greeted() || !c.settled() {
		return false
	}
	c.held = true
	return true
}

// greeted reports whether the plugin serves the lane, which it says before it
// can be called in any other way.
func (c *Caller) greeted() bool {
	if c.served {
		return true
	}
	n, err := unix.Read(c.fd, c.packet)
	if err != nil || n == 0 {
		return false
	}
	h, _, err := parse(c.packet[:n])
	c.served = err == nil && h.kind == kindHello
	return c.served
}

// settled reads the answer to a call that nobody waits for any more.
func (c *Caller) settled() bool {
	if c.owed == 0 {
		return true
	}
	n, err := unix.Read(c.fd, c.packet)
	_, err = c.receive(c.owed, n, err)
	c.reply = nil
	return err == nil && c.owed == 0
}

// Release gives the lane back. The plugin must have ended the call.
func (c *Caller) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	c.reply = nil
	if c.closed {
		c.closeDescriptors()
	}
}

// Close ends the lane: whoever waits gets ErrLost. It may be repeated.
func (c *Caller) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	if !c.held {
		c.closeDescriptors()
		return
	}
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // fails only when the other end is gone already
}

func (c *Caller) closeDescriptors() {
	unix.Close(c.fd)
	unix.Close(c.wakeFD)
}

// Send sends a request; body is what marshal appends to the buffer it gets.
// The plugin bounds the call by timeout, when that is not 0.
func (c *Caller) Send(id uint64, method uint16, timeout time.Duration, marshal func([]byte) ([]byte, error)) error {
	packet, err := marshal(c.packet[:headerSize])
	if err != nil {
		return err
	}
	if len(packet) > MaxPacket {
		return ErrTooLarge
	}
	header{kind: kindCall, last: true, method: method, id: id, timeout: timeout}.put(packet)
	for {
		// There is room: the plugin has read every earlier packet, or is lost.
		_, err = unix.SendmsgN(c.fd, packet, nil, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	c.owed = id
	return nil
}

// Reply is an answer. Body is good until Release.
type Reply struct {
	Body   []byte
	Failed bool // the body is the status of an error
}

// Wait waits for the answer to call id on the calling thread. It returns nil
// after limit, after Wake, and after any signal: its caller looks at its
// context and waits again.
func (c *Caller) Wait(id uint64, limit time.Duration) (*Reply, error) {
	if c.waiting != id { // the first wait for this call
		c.waiting = id
		n, err := spin(c.fd, c.packet)
		if reply, err := c.receive(id, n, err); reply != nil || err != nil {
			return reply, err
		}
	}
	fds := [2]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.wakeFD), Events: unix.POLLIN}}
	n, err := unix.Poll(fds[:], milliseconds(limit))
	if err == unix.EINTR || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: poll: %w", ErrLost, err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(c.wakeFD, count[:]) // fails only when another Wait has read it
	}
	if fds[0].Revents == 0 {
		return nil, nil
	}
	n, err = unix.Read(c.fd, c.packet)
	return c.receive(id, n, err)
}

// receive takes what was read, and reads the further packets of a reply. One
// call is on its way at a time, so that a packet of another is a mistake, and
// none can keep the caller here.
func (c *Caller) receive(id uint64, n int, err error) (*Reply, error) {
	for ; ; n, err = unix.Read(c.fd, c.packet) {
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, nil
		case err != nil || n == 0:
			return nil, ErrLost
		}
		reply, err := c.take(id, c.packet[:n])
		if err != nil {
			c.broken = true
			return nil, err
		}
		if reply != nil {
			c.owed = 0
			return reply, nil
		}
	}
}

// take adds a packet to the reply to call id, and gives it when it is whole.
func (c *Caller) take(id uint64, packet []byte) (*Reply, error) {
	h, body, err := parse(packet)
	if err != nil {
		return nil, err
	}
	if h.id != id || h.kind != kindReply && h.kind != kindError {
		return nil, fmt.Errorf("%w: kind %d of call %d, while call %d is on its way", errPacket, h.kind, h.id, id)
	}
	if len(c.reply)+len(body) > c.limit || !h.last && len(body) == 0 {
		return nil, fmt.Errorf("%w: %d bytes after %d of a reply", errPacket, len(body), len(c.reply))
	}
	if h.last && len(c.reply) == 0 {
		return &Reply{Body: body, Failed: h.kind == kindError}, nil
	}
	c.reply = append(c.reply, body...)
	if h.last {
		return &Reply{Body: c.reply, Failed: h.kind == kindError}, nil
	}
	return nil, nil
}

// Wake ends the Wait under way, or the next one. The caller holds the lane, or
// does not mind that somebody else's Wait ends early.
func (c *Caller) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return // whoever waits was woken by that
	}
	one := [8]byte{1}
	_, _ = unix.Write(c.wakeFD, one[:]) // fails only when it is full, which also wakes
}

// milliseconds rounds up, so that a wait that is not over does not become a busy one.
func milliseconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}
