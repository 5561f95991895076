// Package plugins is what the host and a plugin process agree on before they
// can talk: the go-plugin handshake, and what the process inherits.
package plugins

// The go-plugin handshake. The cookie is no secret: it keeps a plugin started
// by hand from waiting for a host. The protocol version changes only when an
// old plugin can no longer be served; messages grow by appended fields.
const (
	CookieKey       = "TRIVIUM_PLUGIN"
	CookieValue     = "7d0f0b5e-trivium-plugin"
	ProtocolVersion = 1
)

// OldestProtocol is the oldest version that a host still serves: a plugin built
// for any from it to ProtocolVersion works.
const OldestProtocol = 1

// Descriptors that a plugin process inherits. Its standard output is the host's
// log, like its standard error, so that nothing it or its libraries print can
// spoil the handshake, which has a descriptor of its own.
const (
	SideChannelFD = 3 // unix SEQPACKET socket of package shm
	HandshakeFD   = 4 // pipe for the go-plugin handshake line
	LaneFD        = 5 // unix SEQPACKET socket of package lane, when EnvLane is set
	ProgramFD     = 6 // the verified program, where an interpreter or a launcher needs it
)

// LaneAttend is the method of the lane that stands for AttentionService.Attend,
// whose messages it takes.
const LaneAttend = 1

// Environment of a plugin process, set by the host.
const (
	EnvHostPID = "TRIVIUM_HOST_PID"    // the plugin ends when this process does
	EnvLane    = "TRIVIUM_PLUGIN_LANE" // "1": there is a lane, which the plugin may serve
	EnvPath    = "TRIVIUM_PLUGIN_PATH" // where the executable came from: it runs from a verified copy
)
