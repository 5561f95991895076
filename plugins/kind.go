package plugins

// EnvKind tells a plugin process which kind of strategies it serves, such as
// "attention": a plugin runs one process for each kind in use.
const EnvKind = "TRIVIUM_PLUGIN_KIND"

// MaxMessage bounds a message in bytes. Tensors and masks are not in messages;
// the reports of many heads are.
const MaxMessage = 16 << 20
