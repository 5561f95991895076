package core

import (
	"bytes"
	"os"
	"strconv"
)

// crowd says whether outputs of so many bytes are written past the page cache: where
// they fill most of the memory they push out the sources and each other, and all wait
// for the disk in the end. Where it is not known what is available, they are not.
func crowd(outputs, available int64) bool { return available > 0 && outputs > available/2 }

// availableMemory is what the system can give without swapping, in bytes; 0 where it
// does not say.
func availableMemory() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(text, []byte("MemAvailable:"))
	fields := bytes.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}
