// Package shm shares tensors between the host and its plugin processes without
// copying them.
//
// The host takes memory from a Pool as a Segment (a sealed memfd), or describes
// a range of an open file as a File, and announces it once per plugin process
// through a Peer (SCM_RIGHTS over a SEQPACKET socket pair). RPC messages then
// carry only (id, generation, offset, length). The plugin process receives the
// announcements in a Table, checks every descriptor before it maps anything,
// and hands out bounds-checked Views.
//
// Trust: a plugin process runs as the same user and may read and write every
// segment announced to it until the segment is dropped, pooled ones included.
// The seals protect the host and the plugin from each other's mistakes about
// size: nobody can shrink memory that the other side is reading.
//
// After fork the child shares the parent's segments; it must not write to them.
package shm
