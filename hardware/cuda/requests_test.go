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
		"odd head_dim": {func(a *Attention) { a.Query.Dim = 100 }, "multiple of 8 up to 128"},
		"wide heads":   {func(a *Attention) { a.Query.Dim = 256 }, "multiple of 8 up to 128"},
		"dims differ":  {func(a *Attention) { a.Value.Dim = 64 }, "want one"},
		"heads":        {func(a *Attention) { a.Query.Heads = 7; a.Out.Heads = 7 }, "multiple of k heads"},
		"lengths":      {func(a *Attention) { a.Value.Rows = 399 }, "k like v"},
		"alignment":    {func(a *Attention) { a.Key.Data += 2 }, "off 16 bytes"},
		"stride":       {func(a *Attention) { a.Key.Stride = 130 }, "off 16 bytes"},
		"empty":        {func(a *Attention) { a.Key.Rows = 0 }, "empty"},
		"output":       {func(a *Attention) { a.Out.Rows = 299 }, "shape of q"},
		"no lse":       {func(a *Attention) { a.LSE = 0 }, "lse"},
		"band of zero": {func(a *Attention) { a.Rotated = &rotated }, "distance of 1 or more"},
		"turn of zero": {func(a *Attention) { a.Turn = &Turn{Angles: make([]float64, 64)} }, "distance of 1 or more"},
		"turn twice":   {func(a *Attention) { a.Turn, a.Rotated, a.Band = &Turn{}, &rotated, 8 }, "one of them"},
		"wide turn":    {func(a *Attention) { a.Turn, a.Band = &Turn{Angles: make([]float64, 65), Interleaved: true}, 8 }, "at most all of it"},
		"odd turn":     {func(a *Attention) { a.Turn, a.Band = &Turn{Angles: make([]float64, 5)}, 8 }, "even number"},
		"full window":  {func(a *Attention) { a.Full, a.Window = true, 8 }, "without causality"},
		"full bands":   {func(a *Attention) { a.Full, a.Rotated, a.Band = true, &rotated, 8 }, "without causality"},
		"offset":       {func(a *Attention) { a.Offset = -1 }, "negative"},
		"no entry":     {func(a *Attention) { a.Sequences = []Sequence{{Batch: 1, Queries: 1, Keys: 1}} }, "batch entry 1"},
		"query rows":   {func(a *Attention) { a.Sequences = []Sequence{{QueryRow: 299, Queries: 2, Keys: 1}} }, "[299, 301)"},
		"key rows":     {func(a *Attention) { a.Sequences = []Sequence{{Queries: 1, KeyRow: 100, Keys: 301}} }, "k has 400 rows"},
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
		"keys":     {func(s *Selection) { s.Key.Rows = 2048 }, "no more rows of q"},
		"chunk":    {func(s *Selection) { s.Query.Rows = 127 }, "a chunk of 127"},
		"heads":    {func(s *Selection) { s.HeadGamma = []float32{.9} }, "for 1 heads"},
		"a head":   {func(s *Selection) { s.HeadGamma = []float32{.9, .9, .9, .9, .9, .9, .9, 0} }, "gamma 0"},
		"short":    {func(s *Selection) { s.Query.Rows, s.Key.Rows = 1024, 1024 }, "more than 1024"},
		"too long": {func(s *Selection) { s.Query.Rows, s.Key.Rows = 1<<20, 1<<20 }, "at most"},
		"gamma":    {func(s *Selection) { s.Gamma = 1.5 }, "want (0, 1]"},
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

// Every token of a sequence is in the block of its position, whole or as parts of a batch.
func TestAlignedSequences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Sequence{Batch: rapid.IntRange(0, 3).Draw(t, "batch"), QueryRow: rapid.IntRange(0, 500).Draw(t, "row"), Queries: rapid.IntRange(1, 500).Draw(t, "queries"),
			KeyRow: rapid.IntRange(0, 500).Draw(t, "key row"), Keys: rapid.IntRange(1, 900).Draw(t, "keys"), Offset: rapid.IntRange(0, 900).Draw(t, "offset")}
		full := rapid.Bool().Draw(t, "full")
		a := Attention{Query: tensor(4, 2, 1000, 64), Sequences: []Sequence{s}, Full: full}
		x := a.aligned(s, Tile)
		if x.q_offset%Tile != 0 && !full || int(x.skip) != s.Offset%Tile || int(x.box) != s.Batch {
			t.Fatalf("%+v of %+v: want its start on a block", x, s)
		}
		for i := range s.Queries {
			row := i + int(x.skip) // as the kernels count
			if int(x.q_row)+row != s.QueryRow+i || row >= int(x.q_len) || row/Tile >= a.QueryBlocks() {
				t.Fatalf("query %d of %+v is row %d of %+v in %d blocks", i, s, row, x, a.QueryBlocks())
			}
			if position := int(x.q_offset) + row; !full && position != s.Offset+i || full && position < s.Keys-1 {
				t.Fatalf("query %d of %+v is at %d of %+v", i, s, position, x)
			}
			if row/Tile != (s.Offset+i)/Tile-s.Offset/Tile {
				t.Fatalf("query %d of %+v is in block %d", i, s, row/Tile)
			}
		}
	})
}

func TestSplitsOfFewQueries(t *testing.T) {
	for _, c := range []struct{ groups, rowTiles, keys, processors, shared, warps, most int }{
		{8, 1, 131072, 132, 232448, 8, 132}, {1, 1, 131072, 132, 232448, 8, 132}, {256, 1, 131072, 132, 232448, 8, 528},
		{8, 1, 1, 132, 232448, 8, 8}, {8, 4, 4096, 132, 232448, 8, 132}, {8, 1, 32768, 84, 101376, 4, 84},
	} {
		w := planSplit(splitWork{tensors: 2, rows: decodeRows, rowTiles: c.rowTiles, groups: c.groups}, c.keys, c.processors, c.shared)
		if w.warps != c.warps || w.shared()+w.static() > c.shared {
			t.Errorf("%+v: %d warps with %d bytes", c, w.warps, w.shared())
		}
		if w.splits < 1 || w.parts() > c.most || w.splits > ceilDiv(c.keys, Tile) {
			t.Errorf("%+v: %d splits make %d blocks", c, w.splits, w.parts())
		}
		if c.keys >= 32768 && c.groups <= 8 && w.parts() < c.processors*3/4 {
			t.Errorf("%+v: %d blocks leave processors idle", c, w.parts())
		}
	}
}

func TestWhoDecodes(t *testing.T) {
	a := Attention{Query: tensor(1, 32, 1, 128), Key: tensor(1, 8, 4096, 128)}
	if !a.decodes() {
		t.Error("one query in groups of four: want it split over the keys")
	}
	a.Query.Rows = 17
	if a.decodes() {
		t.Error("17 queries in groups of four: want prefill")
	}
	a.Sequences = []Sequence{{Queries: 3}, {Queries: 16}}
	if !a.decodes() {
		t.Error("at most 16 queries a sequence: want them split over the keys")
	}
	a.Sequences = make([]Sequence, 8192)
	a.Sequences[0].Queries = 1
	if a.decodes() {
		t.Error("8192 sequences of 8 heads are more groups than a grid holds")
	}
	a.Sequences, a.Mask = a.Sequences[:2], &Mask{}
	if a.decodes() {
		t.Error("a mask: want prefill")
	}
}

func TestRotationRefuses(t *testing.T) {
	good := func() Rotation {
		return Rotation{In: tensor(1, 8, 300, 128), Out: tensor(1, 8, 300, 128), Applied: make([]float64, 64), InvFreq: make([]float64, 64)}
	}
	if err := good().validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Rotation)
		say    string
	}{
		"shape":    {func(r *Rotation) { r.Out.Rows = 299 }, "the shape of q"},
		"odd":      {func(r *Rotation) { r.Applied, r.InvFreq = r.Applied[:5], r.InvFreq[:5] }, "5 and 5 frequencies"},
		"none":     {func(r *Rotation) { r.Applied, r.InvFreq = nil, nil }, "0 and 0 frequencies"},
		"too many": {func(r *Rotation) { r.In.Dim, r.Out.Dim = 96, 96 }, "head_dim 96"},
		"differ":   {func(r *Rotation) { r.Applied = r.Applied[:32] }, "64 and 32"},
		"many":     {func(r *Rotation) { r.Sequences = make([]Sequence, 1<<16) }, "at most 65535"},
		"rows":     {func(r *Rotation) { r.Sequences = []Sequence{{QueryRow: 200, Queries: 101}} }, "[200, 301)"},
	} {
		r := good()
		c.change(&r)
		if err := r.validate(); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: error %v, want one that says %q", name, err, c.say)
		}
	}
}

func TestSelectorsRefuse(t *testing.T) {
	chunk := Chunk{Query: tensor(1, 8, 300, 128), Key: tensor(1, 2, 400, 128), Scale: .1, Offset: 100}
	flash := func() FlashPrefill {
		return FlashPrefill{Chunk: chunk, Alpha: []float32{.1}, SinkBlocks: 2, WindowBlocks: 4, LastBlocks: 2}
	}
	square := func() XAttention {
		return XAttention{Chunk: chunk, Threshold: []float32{.9}, Stride: 16, Norm: 1}
	}
	if err := flash().validate(); err != nil {
		t.Fatal(err)
	}
	if err := square().validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*FlashPrefill, *XAttention)
		say    string
	}{
		"behind the keys": {func(f *FlashPrefill, x *XAttention) { f.Offset, x.Offset = 101, 101 }, "positions of the 400 keys"},
		"scale":           {func(f *FlashPrefill, x *XAttention) { f.Scale, x.Scale = 0, 0 }, "more than 0"},
		"heads":           {func(f *FlashPrefill, x *XAttention) { f.Alpha, x.Threshold = []float32{0, 0}, []float32{1, 1} }, "for 8 heads"},
		"head_dim":        {func(f *FlashPrefill, x *XAttention) { f.Query.Dim, x.Query.Dim = 64, 64 }, "equal batches and head_dim"},
		"range":           {func(f *FlashPrefill, x *XAttention) { f.Alpha, x.Threshold = []float32{1.5}, []float32{1.5} }, "1.5: want"},
		"numbers":         {func(f *FlashPrefill, x *XAttention) { f.SinkBlocks, x.Stride = 0, 12 }, "want"},
	} {
		f, x := flash(), square()
		c.change(&f, &x)
		for _, err := range []error{f.validate(), x.validate()} {
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%s: error %v, want one that says %q", name, err, c.say)
			}
		}
	}
}

func TestCausalTiles(t *testing.T) {
	for _, c := range []struct{ first, queries, keys, want int }{{0, 4, 4, 10}, {2, 2, 4, 7}, {0, 4, 2, 7}, {5, 1, 9, 6}, {0, 0, 3, 0}} {
		if got := causalTiles(c.first, c.queries, c.keys); got != c.want {
			t.Errorf("%+v: %d tiles", c, got)
		}
	}
}

// The kernels rely on these limits of a Hopper block.
func TestSharedMemoryFits(t *testing.T) {
	const most, pair = 232448, (233472 - 2*1024) / 2
	turn := Turn{Angles: make([]float64, 64)}
	if got := (Attention{Query: tensor(1, 1, 1, 128), Turn: &turn}).attendShared(); got > most {
		t.Errorf("attention takes %d bytes of %d", got, most)
	}
	if got := plainShared(128, 2); got > 163*1024 {
		t.Errorf("attention takes %d bytes of the %d of an sm_80 block", got, 163*1024)
	}
	for _, hopper := range []bool{false, true} {
		if got := squaresShared(hopper); got < 8*mostKeyBlocks*4 || hopper && got > most || !hopper && got > 99*1024 {
			t.Errorf("squares take %d bytes, and %d key blocks must fit", got, mostKeyBlocks)
		}
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

func TestProbingRefuses(t *testing.T) {
	q := &Queue{device: &Device{Processors: 132}}
	a := Attention{Query: tensor(1, 8, 300, 128), Key: tensor(1, 2, 400, 128), Value: tensor(1, 2, 400, 128), Scale: 1}
	for name, r := range map[string]RowSets{"no sets": {Count: 1}, "lines of other lengths": {Sets: []int32{0, 1}, Rows: []int32{1, 2, 3}, Count: 2}, "no rows": {Sets: []int32{0}}} {
		if _, err := q.RowMass(a, r); err == nil || !strings.Contains(err.Error(), "want up to") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	a.Sequences = []Sequence{{Queries: 1, Keys: 1}}
	if _, err := q.RowMass(a, RowSets{Sets: []int32{0}, Rows: []int32{0}, Count: 1}); err == nil {
		t.Error("packed sequences: want an error")
	}
	for _, c := range [][2]int{{-1, 128}, {0, 0}} {
		if _, _, err := q.Pool(a.Key, false, c[0], c[1]); err == nil || !strings.Contains(err.Error(), "want positive blocks") {
			t.Errorf("offset %d, block %d: error %v", c[0], c[1], err)
		}
	}
	chunk := Chunk{Query: a.Query, Key: a.Key, Scale: 1}
	for _, s := range []Streaming{{Chunk: chunk}, {Chunk: chunk, SinkBlocks: -1, WindowBlocks: 1}, {Chunk: Chunk{Query: a.Query, Key: a.Key}, WindowBlocks: 1}} {
		if err := s.validate(); err == nil {
			t.Errorf("%+v: want an error", s)
		}
	}
	if err := (Streaming{Chunk: chunk, WindowBlocks: 1}).validate(); err != nil {
		t.Error(err)
	}
}
