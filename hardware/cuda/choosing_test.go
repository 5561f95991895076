package cuda

import (
	"errors"
	"math"
	"testing"
)

// kept reads the tiles that a selection keeps.
func (b *bench) kept(t *testing.T, m Mask, err error) (keep func(head, i, j int) bool, tiles int) {
	t.Helper()
	if err := errors.Join(err, b.queue.Wait()); err != nil {
		t.Fatal(err)
	}
	blocks := ceilDiv(b.n, Tile)
	keep = readMask(t, b.gpu, m, b.heads, blocks)
	for h := range b.heads {
		for i := range blocks {
			for j := range i + 1 {
				if keep(h, i, j) {
					tiles++
				}
			}
		}
	}
	return keep, tiles
}

func (b *bench) selection(change func(*Selection)) Selection {
	s := Selection{Query: b.call.Query, Key: b.call.Key, Scale: b.call.Scale, Gamma: .5, Tau: .1}
	change(&s)
	return s
}

// Bands without a difference, a window and a softcap beyond everything change
// nothing, by columns and by tiles, under every rule.
func TestIndexWithoutADifference(t *testing.T) {
	b := newBench(t, randomProblem(11, 4, 2, 900, 128))
	for _, rule := range []Rule{Fixed, Released, Paper} {
		for _, tau := range []float32{0, 1} {
			plain := b.selection(func(s *Selection) { s.Rule, s.Tau = rule, tau })
			selected, err := b.queue.Select(plain)
			want, tiles := b.kept(t, selected.Mask, err)
			for name, change := range map[string]func(*Selection){
				"bands":   func(s *Selection) { s.Rotated, s.Band = &b.call.Query, 333 },
				"window":  func(s *Selection) { s.Window = b.n },
				"softcap": func(s *Selection) { s.Softcap = 1e5 },
			} {
				changed := plain
				change(&changed)
				selected, err := b.queue.Select(changed)
				got, same := b.kept(t, selected.Mask, err)
				differ := 0
				for h := range b.heads {
					for i := range ceilDiv(b.n, Tile) {
						for j := range i + 1 {
							if got(h, i, j) != want(h, i, j) {
								differ++
							}
						}
					}
				}
				if differ > tiles/500 {
					t.Errorf("rule %d, tau %g, %s: %d tiles of %d and %d differ", rule, tau, name, differ, same, tiles)
				}
			}
		}
	}
}

func TestPaperRule(t *testing.T) {
	b := newBench(t, randomProblem(12, 4, 2, 1000, 64))
	blocks := ceilDiv(b.n, Tile)
	all, before := b.heads*blocks*(blocks+1)/2, 0
	for _, gamma := range []float32{.01, .05, .2, 1} {
		selected, err := b.queue.Select(b.selection(func(s *Selection) { s.Rule, s.Tau, s.Gamma = Paper, 0, gamma }))
		_, tiles := b.kept(t, selected.Mask, err)
		if tiles < before || gamma == 1 && tiles != all {
			t.Errorf("gamma %g keeps %d of %d tiles, less kept %d", gamma, tiles, all, before)
		}
		before = tiles
	}
	// A budget of a block's worth of columns and of distances: fewer tiles than gamma asks for.
	few := b.selection(func(s *Selection) { s.Rule, s.Tau, s.Gamma = Paper, 0, .5 })
	free, err := b.queue.Select(few)
	_, wanted := b.kept(t, free.Mask, err)
	few.MinBlocks, few.MaxBlocks = 1, 1
	bound, err := b.queue.Select(few)
	if _, tiles := b.kept(t, bound.Mask, err); tiles > wanted {
		t.Errorf("%d tiles within the budget, %d without", tiles, wanted)
	}
	// By tiles, more of them.
	few.Tau, few.Gamma, few.MaxBlocks = 1, .3, 0
	aware, err := b.queue.Select(few)
	if _, tiles := b.kept(t, aware.Mask, err); tiles >= all || tiles < b.heads*(2*blocks-1) {
		t.Errorf("query-aware heads keep %d of %d tiles", tiles, all)
	}
}

func TestStreamingOnDevice(t *testing.T) {
	b := newBench(t, randomProblem(13, 2, 1, 1000, 64))
	mask, err := b.queue.SelectStreaming(Streaming{Chunk: Chunk{Query: b.call.Query, Key: b.call.Key, Scale: 1}, SinkBlocks: 1, WindowBlocks: 3, LastBlocks: 1})
	keep, _ := b.kept(t, mask, err)
	last := ceilDiv(b.n, Tile) - 1
	for i := range last + 1 {
		for j := range i + 1 {
			if want := j < 1 || j > i-3 || i == last; keep(1, i, j) != want {
				t.Errorf("tile (%d, %d): kept %v, want %v", i, j, !want, want)
			}
		}
	}
}

func TestRowMassAndMeans(t *testing.T) {
	b := newBench(t, randomProblem(14, 4, 2, 700, 96))
	other := randomProblem(15, 4, 2, 700, 96)
	rotated := b.call.Query
	rotated.Data = upload(t, b.gpu, other.q)
	for name, change := range map[string]func(*Attention){
		"plain": func(*Attention) {}, "bands": func(a *Attention) { a.Rotated, a.Band = &rotated, 200 },
		"window": func(a *Attention) { a.Window = 150 }, "softcap": func(a *Attention) { a.Softcap = 1.5 }, "full": func(a *Attention) { a.Full = true },
	} {
		a := b.call
		change(&a)
		rows := [][]int{{0, 5, 127, 128, 400, 699}, {300, 301, 302, 303, 304, -1}, {699, -1, -1, -1, -1, -1}}
		sets := RowSets{Sets: []int32{0, 3, 2}, Count: 6}
		for _, set := range rows {
			for _, r := range set {
				sets.Rows = append(sets.Rows, int32(r))
			}
		}
		m, err := b.queue.RowMass(a, sets)
		if err != nil {
			t.Fatal(err)
		}
		mass, lse := b.floats(t, m.Mass, len(sets.Rows)*m.KeyTiles), b.floats(t, m.LSE, len(sets.Rows))
		for i, set := range rows {
			for r, row := range set {
				want, sum := b.rowMass(a, other, int(sets.Sets[i]), row)
				for j, w := range want {
					if got := mass[(i*6+r)*m.KeyTiles+j]; !(math.Abs(got-w) < 1e-4) {
						t.Fatalf("%s: set %d, row %d, tile %d has %g, want %g", name, i, row, j, got, w)
					}
				}
				if got := lse[i*6+r]; row >= 0 && !(math.Abs(got-sum) < 1e-3) || row < 0 && !math.IsInf(got, -1) {
					t.Errorf("%s: set %d, row %d: LSE %g, want %g", name, i, row, got, sum)
				}
			}
		}
	}
	at, blocks, err := b.queue.Pool(b.call.Key, false, 100, 256)
	if err != nil || blocks != 4 { // positions 100 to 799
		t.Fatalf("%d blocks: %v", blocks, err)
	}
	for i, mean := range b.floats(t, at, b.kvHeads*blocks*b.dim) {
		head, block, column := i/b.dim/blocks, i/b.dim%blocks, i%b.dim
		begin, end := max(0, block*256-100), min(b.n, block*256+156)
		want := 0.0
		for r := begin; r < end; r++ {
			want += b.k[(head*b.n+r)*b.dim+column] / float64(end-begin)
		}
		if !(math.Abs(mean-want) < 1e-5) {
			t.Fatalf("head %d, block %d, column %d: mean %g, want %g", head, block, column, mean, want)
		}
	}
}

// rowMass is the reference of one row, no row when it is negative.
func (b *bench) rowMass(a Attention, other problem, head, row int) (mass []float64, lse float64) {
	mass = make([]float64, ceilDiv(b.n, Tile))
	if row < 0 {
		return mass, math.Inf(-1)
	}
	sum := 0.0
	for j := range b.n {
		if !a.Full && j > row || a.Window > 0 && row-j >= a.Window {
			continue
		}
		q, x := b.q, 0.0
		if a.Rotated != nil && row-j >= a.Band {
			q = other.q
		}
		for c := range b.dim {
			x += q[(head*b.n+row)*b.dim+c] * b.k[(head*b.kvHeads/b.heads*b.n+j)*b.dim+c]
		}
		x *= float64(a.Scale)
		if cap := float64(a.Softcap); cap > 0 {
			x = cap * math.Tanh(x/cap)
		}
		mass[j/Tile] += math.Exp(x)
		sum += math.Exp(x)
	}
	for j := range mass {
		mass[j] /= sum
	}
	return mass, math.Log(sum)
}
