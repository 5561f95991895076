//go:build race

package host

// raceFactor stretches the time limits of tests: the race detector slows the
// plugin, which is this test binary, as well.
const raceFactor = 10
