package shm

import (
	"encoding/binary"
	"fmt"
)

// The side channel carries one kind of packet, little-endian, with exactly one
// descriptor unless it is a drop:
//
//	0 version  1 kind  2 flags(16)  4 zero(32)  8 id  16 offset  24 size
const (
	messageVersion = 1
	messageSize    = 32

	kindSegment = 1
	kindFile    = 2
	kindDrop    = 3

	flagWritable = 1
)

type message struct {
	kind             byte
	flags            uint16
	id, offset, size uint64
}

func (m message) encode() [messageSize]byte {
	var b [messageSize]byte
	b[0], b[1] = messageVersion, m.kind
	binary.LittleEndian.PutUint16(b[2:], m.flags)
	binary.LittleEndian.PutUint64(b[8:], m.id)
	binary.LittleEndian.PutUint64(b[16:], m.offset)
	binary.LittleEndian.PutUint64(b[24:], m.size)
	return b
}

func decode(b []byte) (message, error) {
	if len(b) != messageSize {
		return message{}, fmt.Errorf("side channel: packet of %d bytes: want %d", len(b), messageSize)
	}
	if b[0] != messageVersion {
		return message{}, fmt.Errorf("side channel: version %d: want %d", b[0], messageVersion)
	}
	m := message{
		kind:   b[1],
		flags:  binary.LittleEndian.Uint16(b[2:]),
		id:     binary.LittleEndian.Uint64(b[8:]),
		offset: binary.LittleEndian.Uint64(b[16:]),
		size:   binary.LittleEndian.Uint64(b[24:]),
	}
	if m.kind < kindSegment || m.kind > kindDrop {
		return message{}, fmt.Errorf("side channel: kind %d: want %d to %d", m.kind, kindSegment, kindDrop)
	}
	if m.offset > maxClass || m.size > maxClass {
		return message{}, fmt.Errorf("side channel: range [%d, +%d): want less than %d", m.offset, m.size, maxClass)
	}
	return m, nil
}
