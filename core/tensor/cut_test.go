package tensor

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cutUp writes the parts of a tensor of random bytes at odd places of some files,
// cut by random planes, and gives the tensor in one piece too.
func cutUp(t *testing.T, rng *rand.Rand, item int64, shape []int64) (*Cut, []byte) {
	t.Helper()
	size := item
	for _, n := range shape {
		size *= n
	}
	whole := make([]byte, size)
	for i := range whole {
		whole[i] = byte(rng.Uint32())
	}
	boxes := []Part{{At: make([]int64, len(shape)), Shape: slices.Clone(shape)}}
	for range 6 {
		b, axis := rng.IntN(len(boxes)), 0
		if len(shape) > 0 {
			axis = rng.IntN(len(shape))
		}
		if len(shape) == 0 || boxes[b].Shape[axis] < 2 {
			continue
		}
		left := 1 + rng.Int64N(boxes[b].Shape[axis]-1)
		other := Part{At: slices.Clone(boxes[b].At), Shape: slices.Clone(boxes[b].Shape)}
		other.At[axis], other.Shape[axis] = other.At[axis]+left, other.Shape[axis]-left
		boxes[b].Shape[axis] = left
		boxes = append(boxes, other)
	}
	c := &Cut{Item: item, Shape: shape}
	dir := t.TempDir()
	for i, box := range boxes {
		file, err := os.Create(filepath.Join(dir, string(rune('a'+i))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		box.File, box.Offset = file, rng.Int64N(9)
		data := append(make([]byte, box.Offset), take(whole, item, shape, &box)...)
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		c.Parts = append(c.Parts, box)
	}
	return c, whole
}

// take copies a box element by element.
func take(whole []byte, item int64, shape []int64, box *Part) []byte {
	count := int64(1)
	for _, n := range box.Shape {
		count *= n
	}
	var out []byte
	for i := range count {
		at, stride, rest := int64(0), int64(1), i
		for axis := len(shape) - 1; axis >= 0; axis-- {
			at += (box.At[axis] + rest%box.Shape[axis]) * stride
			rest /= box.Shape[axis]
			stride *= shape[axis]
		}
		out = append(out, whole[at*item:(at+1)*item]...)
	}
	return out
}

func TestCutTensorReadsAsOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 0))
	for _, shape := range [][]int64{{}, {1}, {40}, {7, 6}, {300, 200}, {9, 4, 3}, {5, 1, 6, 2}, {2, 70000}, {2500, 700}, {3, 1200, 300}} {
		for _, item := range []int64{1, 2, 8} {
			c, whole := cutUp(t, rng, item, shape)
			e := Extent{File: c.Parts[0].File, Size: int64(len(whole)), Cut: c}
			for range 30 {
				start := rng.Int64N(e.Size+1) / item * item
				length := rng.Int64N(e.Size-start+1) / item * item
				e.WillNeed(start, max(length, 1))
				m, err := e.Map(start, length)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(m.Bytes(), whole[start:start+length]) {
					t.Fatalf("shape %v of %d bytes in %d parts: bytes [%d, +%d) are others", shape, item, len(c.Parts), start, length)
				}
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				// The same in room of the caller's, which holds something else.
				room := bytes.Repeat([]byte{0xa5}, int(length))
				in, err := e.MapIn(start, length, func(int64) []byte { return room })
				if err != nil || !bytes.Equal(in.Bytes(), whole[start:start+length]) {
					t.Fatalf("bytes [%d, +%d) in room: error %v, or others", start, length, err)
				}
				if taken := in.Room() != nil; taken != (len(in.pages) == 0 && length > 0) {
					t.Fatalf("room is taken: %t, of a mapping of %d bytes", taken, len(in.pages))
				}
				if err := in.Close(); err != nil {
					t.Fatal(err)
				}
				w, err := c.Window(start, length)
				if err != nil {
					t.Fatal(err)
				}
				inside := rng.Int64N(length+1) / item * item
				to := bytes.Repeat([]byte{0x5a}, int(length-inside))
				if err := w.CopyTo(to, start+inside); err != nil || !bytes.Equal(to, whole[start+inside:start+length]) {
					t.Fatalf("shape %v of %d bytes in %d parts: bytes [%d, +%d) of a window: error %v, or others", shape, item, len(c.Parts), start+inside, len(to), err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// A range within one part is the file's own pages.
func TestCutTensorMapsWithoutACopy(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(bytes.Repeat([]byte{1}, 64)); err != nil {
		t.Fatal(err)
	}
	c := &Cut{Item: 4, Shape: []int64{4, 4}, Parts: []Part{
		{File: file, Offset: 0, At: []int64{0, 0}, Shape: []int64{2, 4}},
		{File: file, Offset: 32, At: []int64{2, 0}, Shape: []int64{2, 4}},
	}}
	e := Extent{File: file, Size: 64, Cut: c}
	for item, copied := range map[int64]bool{2: false, 4: false, 8: true} {
		odd := &Cut{Item: item, Shape: []int64{24 / item}, Parts: []Part{{File: file, Offset: 1, At: []int64{0}, Shape: []int64{24 / item}}}}
		m, err := odd.mapRange(0, 24, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if got := len(m.pages) == 24; got != copied { // a mapping of the file begins with its page
			t.Errorf("elements of %d bytes at an odd address: copied %t, want %t", item, got, copied)
		}
	}
	inside, err := e.Map(36, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	across, err := e.Map(28, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer across.Close()
	if _, err := file.WriteAt(bytes.Repeat([]byte{2}, 64), 0); err != nil {
		t.Fatal(err)
	}
	if inside.Bytes()[0] != 2 || across.Bytes()[0] != 1 {
		t.Errorf("after a write the range within a part has %d, the one across has %d: want 2 and 1", inside.Bytes()[0], across.Bytes()[0])
	}
}

func TestCutTensorErrors(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 0))
	c, whole := cutUp(t, rng, 2, []int64{50, 60})
	e := Extent{File: c.Parts[0].File, Size: int64(len(whole)), Cut: c}
	if err := c.Parts[1].File.Truncate(20); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Map(0, e.Size); err == nil || !strings.Contains(err.Error(), io.EOF.Error()) || !strings.Contains(err.Error(), c.Parts[1].File.Name()) {
		t.Errorf("error %v: want the end of %s", err, c.Parts[1].File.Name())
	}
	row, err := c.Window(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer row.Close()
	if err := row.CopyTo(make([]byte, e.Size), 0); err == nil || !strings.Contains(err.Error(), "mapped") {
		t.Errorf("error %v: want that a row is not all of it", err)
	}
	e.Cut = &Cut{Item: c.Item, Shape: c.Shape, Parts: c.Parts[:1]}
	if _, err := e.Map(0, e.Size); err == nil || !strings.Contains(err.Error(), "tile") {
		t.Errorf("error %v: want that parts are missing", err)
	}
}
