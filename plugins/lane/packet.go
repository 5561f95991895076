package lane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// MaxPacket bounds one packet. A request must fit into one; a reply may take several.
const MaxPacket = 64 << 10

const headerSize = 32

// spinTime is how long either end looks for a packet before it sleeps. Waking a
// thread on a virtual processor that has halted costs about as much.
const spinTime = 50 * time.Microsecond

// spin reads a packet of a descriptor that does not block, for at most spinTime.
func spin(fd int, packet []byte) (n int, err error) {
	for began := time.Now(); ; {
		n, err = unix.Read(fd, packet)
		if err != unix.EAGAIN && err != unix.EINTR || time.Since(began) > spinTime {
			return n, err
		}
	}
}

type kind uint8

const (
	kindHello kind = iota + 1 // of the plugin, once, when it serves the lane
	kindCall
	kindReply
	kindError
)

// header precedes the body of every packet, in little-endian order.
type header struct {
	kind    kind
	last    bool          // no further packet of this message follows
	method  uint16        // of a call
	id      uint64        // of a call
	timeout time.Duration // of a call; 0: none
}

var errPacket = errors.New("lane: a packet that is not of the contract")

func (h header) put(packet []byte) {
	clear(packet[:headerSize])
	packet[0] = byte(h.kind)
	if h.last {
		packet[1] = 1
	}
	binary.LittleEndian.PutUint16(packet[2:], h.method)
	binary.LittleEndian.PutUint64(packet[8:], h.id)
	binary.LittleEndian.PutUint64(packet[16:], uint64(h.timeout))
}

func parse(packet []byte) (header, []byte, error) {
	if len(packet) < headerSize {
		return header{}, nil, fmt.Errorf("%w: %d bytes", errPacket, len(packet))
	}
	h := header{
		kind:    kind(packet[0]),
		last:    packet[1] == 1,
		method:  binary.LittleEndian.Uint16(packet[2:]),
		id:      binary.LittleEndian.Uint64(packet[8:]),
		timeout: time.Duration(binary.LittleEndian.Uint64(packet[16:])),
	}
	if h.kind < kindHello || h.kind > kindError || h.timeout < 0 {
		return header{}, nil, fmt.Errorf("%w: kind %d, timeout %v", errPacket, h.kind, h.timeout)
	}
	return h, packet[headerSize:], nil
}
