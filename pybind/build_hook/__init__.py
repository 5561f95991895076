"""Builds the native parts of the wheel: the library that gopy binds and the plugin."""
