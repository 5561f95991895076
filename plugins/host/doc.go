// Package host runs strategies in plugin processes. Open reads what plugins
// there are, Register adds an adapter for each of their strategies to a
// registry, and the first call of a strategy starts the process of its plugin
// and kind.
//
// Tensors go by reference. A tensor in memory of the host's pool costs nothing
// to pass; any other is copied once into it, and an output once out of it,
// which the report and Stats say.
//
// A call returns when its plugin no longer touches the memory of the caller. A
// call that was cancelled waits for that: a plugin that does not let go within
// the grace time is killed. Where the plugin has only memory of the pool, the
// call returns sooner, and the memory is set aside until the plugin is done.
package host
