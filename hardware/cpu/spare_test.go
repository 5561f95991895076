package cpu

import (
	"bytes"
	"testing"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// What a block held before must not be seen: over memory of all ones, which are
// NaN of every type, attention gives the same bytes.
func TestSpareMemoryIsOverwritten(t *testing.T) {
	eachISA(t, func(t *testing.T, isa string, b hardware.Backend) {
		releaseSpares()
		for seed := uint64(firstSeed); seed < firstSeed+30; seed++ {
			c := newCase(seed)
			c.attend(t, b)
			fresh := c.outputs()
			spoilSpares()
			c.attend(t, b)
			if !bytes.Equal(fresh, c.outputs()) {
				t.Fatal("memory of an earlier call changes the result: ", c)
			}
		}
	})
}

func spoilSpares() {
	spares.Lock()
	defer spares.Unlock()
	for _, s := range spares.blocks {
		block := unsafe.Slice((*byte)(s.data), s.bytes)
		for i := range block {
			block[i] = 0xff
		}
	}
}

func (c *randomCase) outputs() []byte {
	var all []byte
	for _, sequence := range c.out {
		for _, o := range sequence {
			all = append(all, o.raw...)
		}
	}
	return all
}

func TestSparesServeAndExpire(t *testing.T) {
	releaseSpares()
	var m memory
	first, err := m.alloc(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	m.free()
	if again, _ := m.alloc(900 << 10); again != first {
		t.Error("a block that fits was not used again")
	}
	if other, _ := m.alloc(900 << 10); other == first {
		t.Error("a block has two owners")
	}
	m.free()
	if tiny, _ := m.alloc(100 << 10); tiny == first {
		t.Error("100 KiB took a block of 1 MiB")
	}
	m.free()
	releaseSpares()
	if spares.bytes != 0 || live.Load() != 0 {
		t.Errorf("%d bytes kept, %d in use: want none", spares.bytes, live.Load())
	}
}
