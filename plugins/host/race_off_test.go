//go:build !race

package host

const raceFactor = 1
