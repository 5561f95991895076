package lane

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Call is what the plugin is asked for. Body is good until the handler returns.
type Call struct {
	ID      uint64
	Method  uint16
	Timeout time.Duration // 0: none
	Body    []byte
}

// Handler answers a call: with what it appends to the buffer it gets, which is
// the status of an error when failed.
type Handler func(call Call, reply []byte) (body []byte, failed bool)

// Serve greets the host, calls greeted, and answers calls until the host's end is
// gone. It keeps its thread, so that a call wakes the thread that answers it.
func Serve(end *os.File, handle Handler, greeted func()) error {
	defer end.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd := int(end.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("lane: %w", err)
	}
	s := server{fd: fd, out: make([]byte, MaxPacket)}
	if err := s.send(header{kind: kindHello, last: true}, nil); err != nil {
		return err
	}
	greeted()
	in := make([]byte, MaxPacket)
	var reply []byte
	for {
		n, err := await(fd, in)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n == 0 {
			return nil
		}
		h, body, err := parse(in[:n])
		if err != nil {
			return err
		}
		if h.kind != kindCall {
			return fmt.Errorf("%w: kind %d", errPacket, h.kind)
		}
		var failed bool
		reply, failed = handle(Call{ID: h.id, Method: h.method, Timeout: h.timeout, Body: body}, reply[:0])
		if err := s.answer(h.id, failed, reply); err != nil {
			return nil // the host is gone
		}
		if cap(reply) > 4*MaxPacket {
			reply = nil
		}
	}
}

// await receives a packet: the next call often follows soon.
func await(fd int, in []byte) (n int, err error) {
	if n, err = spin(fd, in); !errors.Is(err, unix.EAGAIN) {
		return n, err
	}
	if err = poll(fd, unix.POLLIN); err != nil {
		return 0, err
	}
	return unix.Read(fd, in)
}

// poll sleeps until the descriptor is ready, or its other end is gone.
func poll(fd int, events int16) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, -1)
	return err
}

type server struct {
	fd  int
	out []byte
}

func (s server) answer(id uint64, failed bool, body []byte) error {
	h := header{kind: kindReply, id: id}
	if failed {
		h.kind = kindError
	}
	for {
		part := body[:min(len(body), MaxPacket-headerSize)]
		body = body[len(part):]
		h.last = len(body) == 0
		if err := s.send(h, part); err != nil || h.last {
			return err
		}
	}
}

func (s server) send(h header, body []byte) error {
	h.put(s.out)
	packet := append(s.out[:headerSize], body...)
	for {
		_, err := unix.SendmsgN(s.fd, packet, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			err = poll(s.fd, unix.POLLOUT)
			if err == nil {
				continue
			}
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
