package host

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// checkNumbers refuses what no attention over finite numbers gives: outputs and
// lse that are NaN, and lse that is +Inf. Where an input is not finite they are
// right, so that inputs are looked at too, once something was found. It looks at
// every number of third parties' answers; those on a device are not looked at.
func (x *exchange) checkNumbers() error {
	if x.call.service.trusted {
		return nil
	}
	var found string
	switch {
	case holds(x.req.Output, isNaN):
		found = "output"
	case x.req.LSE != nil && holds(x.req.LSE, isNaNOrInf):
		found = "lse"
	default:
		return nil
	}
	for _, t := range []*tensor.Tensor{x.req.Query, x.req.Key, x.req.Value} {
		if t.Device() != tensor.CPU || holds(t, notFinite) {
			return nil
		}
	}
	return core.Errorf(core.ErrInternal, "%s that is not a number, for inputs that are finite", found)
}

// bitPattern is a floating-point format in an unsigned integer of its size.
type bitPattern struct {
	exponent, mantissa, sign uint64
	bits                     int
}

var bitPatterns = map[tensor.Dtype]bitPattern{
	tensor.Float16:  {0x7c00, 0x03ff, 0x8000, 16},
	tensor.BFloat16: {0x7f80, 0x007f, 0x8000, 16},
	tensor.Float32:  {0x7f80_0000, 0x007f_ffff, 0x8000_0000, 32},
	tensor.Float64:  {0x7ff << 52, 1<<52 - 1, 1 << 63, 64},
}

func notFinite(p bitPattern, x uint64) bool  { return x&p.exponent == p.exponent }
func isNaN(p bitPattern, x uint64) bool      { return notFinite(p, x) && x&p.mantissa != 0 }
func isNaNOrInf(p bitPattern, x uint64) bool { return isNaN(p, x) || x == p.exponent }

// holds reports whether an element in host memory satisfies is, which holds only
// for elements that are not finite.
func holds(t *tensor.Tensor, is func(bitPattern, uint64) bool) bool {
	p, floating := bitPatterns[t.Dtype()]
	if !floating || t.Device() != tensor.CPU || t.Span() == 0 {
		return false
	}
	l := layoutOf(t)
	if l.dense() {
		return holdsIn(t.Bytes()[:l.len()*l.size], p, is)
	}
	run, axes := sharedRun(l, l)
	shape, memory := l.shape[:axes], t.Bytes()
	var found atomic.Bool
	parallel(int(layout{shape: shape}.len()), max(int(copyGrain/run), 1), func(start, end int) {
		at := make([]int64, axes)
		unflatten(at, shape, int64(start))
		for range end - start {
			from := l.offset(at)
			if holdsInPart(memory[from:from+run], p, is) {
				found.Store(true)
				return
			}
			advance(at, shape)
		}
	})
	return found.Load()
}

// holdsIn looks through large memory by several goroutines.
func holdsIn(memory []byte, p bitPattern, is func(bitPattern, uint64) bool) bool {
	var found atomic.Bool
	parallel(len(memory)/8, copyGrain/8, func(start, end int) {
		if holdsInPart(memory[8*start:8*end], p, is) {
			found.Store(true)
		}
	})
	return found.Load() || holdsInPart(memory[len(memory)&^7:], p, is)
}

func holdsInPart(memory []byte, p bitPattern, is func(bitPattern, uint64) bool) bool {
	if allFinite(memory, p) {
		return false
	}
	var word [8]byte
	for at := 0; at < len(memory); at += p.bits / 8 {
		copy(word[:], memory[at:at+p.bits/8])
		if is(p, binary.LittleEndian.Uint64(word[:])) {
			return true
		}
	}
	return false
}

// allFinite looks at 8 bytes at a time, several elements in a word: an exponent
// of ones carries into the sign, which was masked off.
func allFinite(memory []byte, p bitPattern) bool {
	exponent, unit, sign := p.exponent, uint64(1)<<bits.TrailingZeros64(p.exponent), p.sign
	for width := p.bits; width < 64; width *= 2 {
		exponent, unit, sign = exponent|exponent<<width, unit|unit<<width, sign|sign<<width
	}
	var a, b, c, d uint64
	for ; len(memory) >= 32; memory = memory[32:] {
		a |= binary.LittleEndian.Uint64(memory[0:8])&exponent + unit
		b |= binary.LittleEndian.Uint64(memory[8:16])&exponent + unit
		c |= binary.LittleEndian.Uint64(memory[16:24])&exponent + unit
		d |= binary.LittleEndian.Uint64(memory[24:32])&exponent + unit
	}
	for ; len(memory) > 0; memory = memory[min(8, len(memory)):] {
		var word [8]byte
		copy(word[:], memory)
		a |= binary.LittleEndian.Uint64(word[:])&exponent + unit
	}
	return (a|b|c|d)&sign == 0
}
