package cpu

// #include "support.h"
import "C"

import (
	"sync"
	"time"
)

// Fresh memory of the system is cleared page by page before the first write: a
// third of the time of sparse attention at 16k tokens, whose packed keys and
// values are as large as its inputs. So the blocks of a call serve the next one,
// which in a model is that of the next layer.
const (
	spareLeast = 64 << 10 // bytes; what is smaller costs nothing
	spareMost  = 1 << 30  // bytes kept in all
	spareTime  = 5 * time.Second
)

// spares are blocks that nobody uses, the last released last.
var spares struct {
	sync.Mutex
	blocks []block
	bytes  C.size_t
	expiry *time.Timer
}

// takeSpare gives a block that holds that many bytes and at most twice as many.
func takeSpare(bytes C.size_t) (block, bool) {
	if bytes < spareLeast {
		return block{}, false
	}
	spares.Lock()
	defer spares.Unlock()
	best := -1
	for i, b := range spares.blocks {
		if b.bytes >= bytes && b.bytes <= 2*bytes && (best < 0 || b.bytes <= spares.blocks[best].bytes) {
			best = i
		}
	}
	if best < 0 {
		return block{}, false
	}
	b := spares.blocks[best]
	spares.blocks = append(spares.blocks[:best], spares.blocks[best+1:]...)
	spares.bytes -= b.bytes
	return b, true
}

// keepSpare keeps a block for spareTime after the last one that was released.
func keepSpare(b block) bool {
	if b.bytes < spareLeast {
		return false
	}
	spares.Lock()
	defer spares.Unlock()
	if spares.bytes+b.bytes > spareMost {
		return false
	}
	spares.blocks = append(spares.blocks, b)
	spares.bytes += b.bytes
	if spares.expiry == nil {
		spares.expiry = time.AfterFunc(spareTime, releaseSpares)
	} else {
		spares.expiry.Reset(spareTime)
	}
	return true
}

// releaseSpares gives the system back what nobody has used for a while.
func releaseSpares() {
	spares.Lock()
	defer spares.Unlock()
	for _, b := range spares.blocks {
		C.trivium_free(b.data)
	}
	spares.blocks, spares.bytes = nil, 0
}
