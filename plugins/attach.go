package plugins

// A plugin that is started by hand, as under a debugger, waits for a host at a
// socket, and gets over it what a process that the host starts inherits: one
// packet, its environment as lines, with the descriptors from SideChannelFD on.
const (
	// EnvAttach names the socket, in the environment of the plugin.
	EnvAttach = "TRIVIUM_ATTACH"
	// EnvReattach names, in the host's, the plugins that wait: name=socket,
	// separated by commas.
	EnvReattach = "TRIVIUM_REATTACH"
	// EnvDescriptors are the numbers that the descriptors have in such a plugin,
	// separated by commas.
	EnvDescriptors = "TRIVIUM_DESCRIPTORS"
	// MaxAttach bounds the packet.
	MaxAttach = 128 << 10
)
