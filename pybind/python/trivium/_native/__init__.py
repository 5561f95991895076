"""The library built from the Go package ./pybind. Use `trivium._bridge`, not this."""
