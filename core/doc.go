// Package core is Trivium as a library: the contracts of the three kinds of
// strategy (attention, position, merging), the requests and responses that
// cross them, and the engine that validates a call and runs it.
//
// Strategies exchange data, a [PositionPlan] or a [BlockMask], and never
// callbacks, so any position strategy composes with any attention strategy,
// in whatever process or language each runs. Plugin processes enter through
// the registry: see package host.
package core
