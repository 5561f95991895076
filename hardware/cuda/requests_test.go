package cuda

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func tensor(batch, heads, rows, dim int) Tensor {
	return Tensor{Data: 1 << 20, Batch: batch, Heads: heads, Rows: rows, Dim: dim,
		Stride: int64(dim), StrideH: int64(dim * rows), StrideB: int64(dim * rows * heads)}
}

func TestAttentionRefuses(t *testing.T) {
	good := func() Attention {
		return Attention{Query: tensor(1, 8, 300, 128), Key: tensor(1, 2, 400, 128), Value: tensor(1, 2, 400, 128), Out: tensor(1, 8, 300, 128), LSE: 16}
	}
	if err := good().validate(); err != nil {
		t.Fatal(err)
	}
	rotated := tensor(1, 8, 300, 128)
	for name, c := range map[string]struct {
		change func(*Attention)
		say    string
	}{
		"head_dim":     {func(a *Attention) { a.Query.Dim = 96 }, "want 64 or 128"},
		"dims differ":  {func(a *Attention) { a.Value.Dim = 64 }, "want one"},
		"heads":        {func(a *Attention) { a.Query.Heads = 7; a.Out.Heads = 7 }, "multiple of k heads"},
		"lengths":      {func(a *Attention) { a.Value.Rows = 399 }, "k like v"},
		"alignment":    {func(a *Attention) { a.Key.Data += 2 }, "off 16 bytes"},
		"stride":       {func(a *Attention) { a.Key.Stride = 130 }, "off 16 bytes"},
		"empty":        {func(a *Attention) { a.Key.Rows = 0 }, "empty"},
		"output":       {func(a *Attention) { a.Out.Rows = 299 }, "shape of q"},
		"no lse":       {func(a *Attention) { a.LSE = 0 }, "lse"},
		"band of zero": {func(a *Attention) { a.Rotated = &rotated }, "distance of 1 or more"},
	} {
		a := good()
		c.change(&a)
		if err := a.validate(); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: error %v, want one that says %q", name, err, c.say)
		}
	}
}

func TestSelectionRefuses(t *testing.T) {
	good := func() Selection {
		return Selection{Query: tensor(1, 8, 4096, 128), Key: tensor(1, 2, 4096, 128), Gamma: .9, Tau: .1, MinBlocks: 8}
	}
	if err := good().validate(232448); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Selection)
		say    string
	}{
		"chunk":     {func(s *Selection) { s.Query.Rows = 2048 }, "equal batches, rows"},
		"short":     {func(s *Selection) { s.Query.Rows, s.Key.Rows = 1024, 1024 }, "more than 1024"},
		"too long":  {func(s *Selection) { s.Query.Rows, s.Key.Rows = 1<<20, 1<<20 }, "at most"},
		"gamma one": {func(s *Selection) { s.Gamma = 1 }, "want (0, 1)"},
	} {
		s := good()
		c.change(&s)
		if err := s.validate(232448); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: error %v, want one that says %q", name, err, c.say)
		}
	}
}

func TestSplitsCoverAllTiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks, heads := rapid.IntRange(1, 2560).Draw(t, "blocks"), rapid.IntRange(1, 128).Draw(t, "heads")
		tiles := tilesPerSplit(blocks, heads, 264)
		splits := ceilDiv(blocks, tiles)
		if tiles < 1 || splits*tiles < blocks || (splits-1)*tiles >= blocks {
			t.Fatalf("%d tiles in %d splits for %d blocks", tiles, splits, blocks)
		}
	})
}

// The kernels rely on these limits of a Hopper block.
func TestSharedMemoryFits(t *testing.T) {
	const most, pair = 232448, (233472 - 2*1024) / 2
	if got := attendShared(128, 2); got > most {
		t.Errorf("attention takes %d bytes of %d", got, most)
	}
	if got := plainShared(128, 2); got > 163*1024 {
		t.Errorf("attention takes %d bytes of the %d of an sm_80 block", got, 163*1024)
	}
	if got := scoresShared(128); got > pair {
		t.Errorf("the scores take %d bytes: two blocks need <= %d", got, pair)
	}
}

func TestIndexPartsDoNotOverlap(t *testing.T) {
	q := &Queue{device: &Device{Processors: 132}}
	args := q.indexArgs(Selection{Query: tensor(2, 8, 5000, 128), Key: tensor(2, 2, 5000, 128), Gamma: .9})
	q.scratch, q.size, q.heads = 1<<30, 1<<40, 1<<20
	if err := q.reserve(&args); err != nil {
		t.Fatal(err)
	}
	end := uint64(1 << 30)
	for i, p := range q.indexParts(&args) {
		if at := uint64(*p.at); at < end || p.bytes < 0 {
			t.Errorf("part %d at %#x with %d bytes: the one before ends at %#x", i, at, p.bytes, end)
		}
		end = uint64(*p.at) + uint64(p.bytes)
	}
}
