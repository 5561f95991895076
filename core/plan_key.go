package core

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// key identifies a request: equal requests have equal keys. The frequencies
// enter by their bits.
func (req *PositionRequest) key(name string) string {
	bits := make([]byte, 0, 8*len(req.InvFreq))
	for _, f := range req.InvFreq {
		bits = binary.LittleEndian.AppendUint64(bits, math.Float64bits(f))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %d %d %d %t %s", name, req.HeadDim, req.Length, req.TrainLength, req.Interleaved, bits)
	for _, p := range slices.Sorted(maps.Keys(req.Params)) {
		fmt.Fprintf(&text, " %s=%v", p, req.Params[p])
	}
	return text.String()
}
