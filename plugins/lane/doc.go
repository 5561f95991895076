// Package lane is the short way for small calls between a host and a plugin
// process: one call at a time over a socket pair that the process inherits,
// sent and awaited on the caller's own thread. What travels are the messages
// of the gRPC contract; gRPC remains the way for everything else, for calls
// that come while the lane is taken, and for plugins that do not serve it.
//
// gRPC hands a call from goroutine to goroutine, each of which may sleep on a
// processor that has halted; docs/decisions/0003-cost-of-a-call.md has what
// that costs.
package lane
