package kernel

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel/promise"
)

// From longLength keys on, a few random rows score and others check; below,
// every block has scoring rows that check each other.
const (
	longLength  = 16 << 10
	rowsABlock  = 4
	longStride  = 4 // query blocks from one scoring row to the next
	manyLength  = 32 << 10
	fewChecks   = 256
	manyChecks  = 512
	fewChecksZ  = 3.5
	manyChecksZ = 3
	// Queries that one stands for in a block's mean, which is a fifth of a score and
	// no part of what is promised: see docs/decisions/cpu-selection.md.
	meanQueries = 4
)

// Promise keeps, of each head, the tiles that force keeps and the fewest others
// for which the lower confidence bound of coverage is at least the parameter
// gamma. A head that force makes dense is left at that.
func (c *Call) Promise(ctx context.Context, blockSize int, force func(h *Head)) (*core.Selection, error) {
	grid := c.grid(blockSize)
	samples := c.sample(grid, blockSize)
	sets := make([]hardware.RowSet, len(samples))
	for slot, s := range samples {
		sets[slot] = hardware.RowSet{Sequence: slot / c.Heads, Head: slot % c.Heads, Rows: s.rows}
	}
	masses, err := c.rowMass(ctx, sets, blockSize)
	if err != nil {
		return nil, err
	}
	keys, err := c.Prober.Pool(ctx, false, blockSize, 1)
	if err != nil {
		return nil, err
	}
	queries, err := c.Prober.Pool(ctx, true, blockSize, meanQueries)
	if err != nil {
		return nil, err
	}
	return c.Choose(ctx, blockSize, func(h *Head) error {
		slot := c.Slot(h.Sequence, h.Head)
		force(h)
		if h.reason != "" { // it is dense
			return nil
		}
		forced := h.Count()
		room := rooms.Get().(*promise.Room)
		defer rooms.Put(room)
		rule := samples[slot].head(h, masses[slot].Mass)
		rule.Room, rule.Ranker = room, c.kernel.backend
		rule.Gamma = c.Params.FloatAt("gamma", h.Head)
		rule.Similarity = c.Similarity(c.QueryMeans(h.Sequence, blockSize, queries[slot]),
			c.KeyMeans(h.Sequence, blockSize, keys[c.KeySlot(h.Sequence, h.Head)]), h.Visible).Score
		h.keep(rule.Find(), forced, samples[slot].delta)
		return nil
	})
}

// rooms are the memory of rules, for the next head or call.
var rooms = sync.Pool{New: func() any { return &promise.Room{} }}

// rowMass asks for the sets that have rows; the others get an empty result.
func (c *Call) rowMass(ctx context.Context, sets []hardware.RowSet, blockSize int) ([]hardware.RowMass, error) {
	var asked []hardware.RowSet
	var at []int
	for i, set := range sets {
		if len(set.Rows) > 0 {
			asked, at = append(asked, set), append(at, i)
		}
	}
	all := make([]hardware.RowMass, len(sets))
	if len(asked) == 0 {
		return all, nil
	}
	masses, err := c.Prober.RowMass(ctx, asked, blockSize)
	for i, m := range masses {
		all[at[i]] = m
	}
	return all, err
}

// keep adds the tiles of a result and reports them. kept are there already; delta
// is that of a proof, or 0.
func (h *Head) keep(r *promise.Result, kept int64, delta float64) {
	for row := range h.QueryBlocks {
		low, high := h.Visible(row)
		level, kept := r.Row(row), h.bits[row*h.words:][:h.words]
		for j := low; j < high; j++ {
			one := uint64(0)
			if int(level[j]) >= r.Stop {
				one = 1
			}
			kept[j/64] |= one << (j % 64)
		}
	}
	h.Report.Coverage, h.Report.CoverageLower, h.Report.ProbeRows = Number(r.Mean), Number(r.Lower), r.Probes
	h.Report.Bound = core.BoundNormal
	if delta > 0 {
		h.Report.Bound, h.Report.Delta = core.BoundProven, delta
	}
	h.Report.BlocksAdded = h.Count() - kept
	if h.Complete() {
		h.Report.Pattern, h.reason = "dense", "no sparser choice holds the promised coverage"
	}
}

// sample is the rows of one head that are probed: the first of them score.
type sample struct {
	rows    []int32
	blocks  []int // query block of each, counted from the sequence's first
	scoring int
	z       float64
	delta   float64 // of a proof by the rows that check; 0: z
	of      drawing
}

// sample draws the rows of every head. Those of a block depend on the seed, the
// kv head and the block's position, so that a chunk draws what the whole prompt
// does; query heads of a group share them.
func (c *Call) sample(grid []core.BlockExtent, blockSize int) []sample {
	samples := make([]sample, len(grid)*c.Heads)
	for slot := range samples {
		s, head := slot/c.Heads, slot%c.Heads
		sequence := &c.Problem.Sequences[s]
		rows, keys := sequence.Query[head].Rows, sequence.Key[0].Rows
		if rows < 2 || keys == 0 {
			continue
		}
		if head > 0 && c.KeySlot(s, head) == c.KeySlot(s, head-1) {
			samples[slot] = samples[slot-1]
			continue
		}
		draw := drawing{seed: uint64(c.Request.Seed), stream: uint64(head * len(sequence.Key) / c.Heads), offset: sequence.Offset, rows: rows, block: blockSize}
		switch delta := probingOf(c.Request).delta; {
		case delta > 0:
			samples[slot] = draw.proving(keys, delta)
		case keys < longLength:
			samples[slot] = draw.everyBlock()
		default:
			samples[slot] = draw.sparse(keys)
		}
	}
	return samples
}

// drawing is the rows of one sequence and what their choice depends on.
type drawing struct {
	seed, stream        uint64
	offset, rows, block int
}

// rowsOf is the rows [low, high) of a query block.
func (d drawing) rowsOf(block int) (low, high int) {
	first := (d.offset/d.block + block) * d.block
	return max(0, first-d.offset), min(d.rows, first+d.block-d.offset)
}

func (d drawing) blocks() int { return (d.offset+d.rows-1)/d.block - d.offset/d.block + 1 }

// pick draws count distinct rows of a block, rising: the first of an order of the
// whole block's that the chunk has.
func (d drawing) pick(block, count int) []int32 {
	low, high := d.rowsOf(block)
	random := rand.New(rand.NewPCG(d.seed, d.stream<<32|uint64(d.offset/d.block+block)))
	first := (d.offset/d.block+block)*d.block - d.offset // of the whole block, which may begin before the chunk
	rows, order := make([]int32, 0, count), make([]int, d.block)
	for i := range order {
		order[i] = first + i
	}
	for i := 0; i < len(order) && len(rows) < count; i++ {
		j := i + random.IntN(len(order)-i)
		order[i], order[j] = order[j], order[i]
		if row := order[i]; row >= low && row < high {
			rows = append(rows, int32(row))
		}
	}
	slices.Sort(rows)
	return rows
}

// everyBlock draws rows of every block; they check each other.
func (d drawing) everyBlock() sample {
	s := sample{z: 3}
	for b := range d.blocks() {
		for _, row := range d.pick(b, rowsABlock) {
			s.rows, s.blocks = append(s.rows, row), append(s.blocks, b)
		}
	}
	s.scoring = len(s.rows)
	return s
}

// sparse draws a scoring row of every few blocks, and other rows that check.
func (d drawing) sparse(keys int) sample {
	s := d.everyFewBlocks()
	checks := fewChecks
	if s.z = fewChecksZ; keys >= manyLength {
		checks, s.z = manyChecks, manyChecksZ
	}
	scored := s.rows[:s.scoring:s.scoring]
	for _, row := range StratifiedRows(int64(d.seed)+1, int(d.stream), d.rows, checks) {
		if _, used := slices.BinarySearch(scored, row); !used {
			s.check(d, row)
		}
	}
	return s
}

// proving draws scoring rows, more of them in short prompts, and uniform rows that
// prove. A row may do both: what it proves needs independent draws, not other
// rows.
func (d drawing) proving(keys int, delta float64) sample {
	s, checks := d.everyBlock(), fewChecks
	if keys >= longLength {
		s, checks = d.everyFewBlocks(), manyChecks
	}
	s.delta, s.of = delta, d
	for _, row := range uniformRows(d.fresh("checks"), d.rows, checks) {
		s.check(d, row)
	}
	return s
}

func (d drawing) fresh(purpose string) rand.Source {
	return freshSource(int64(d.seed), int(d.stream)<<32|d.offset, purpose)
}

// check adds a row that checks.
func (s *sample) check(d drawing, row int32) {
	s.rows, s.blocks = append(s.rows, row), append(s.blocks, (d.offset+int(row))/d.block-d.offset/d.block)
}

// everyFewBlocks draws a row of every few blocks.
func (d drawing) everyFewBlocks() sample {
	var s sample
	for b := range d.blocks() {
		if (d.offset/d.block+b)%longStride == 0 {
			for _, row := range d.pick(b, 1) {
				s.rows, s.blocks = append(s.rows, row), append(s.blocks, b)
			}
		}
	}
	s.scoring = len(s.rows)
	return s
}

// head makes the rule's input of the probed mass.
func (s sample) head(h *Head, rows []float32) *promise.Head {
	probes := make([]promise.Probe, len(s.rows))
	for i := range probes {
		probes[i] = promise.Probe{Row: s.blocks[i], Mass: rows[i*h.KeyBlocks : (i+1)*h.KeyBlocks]}
	}
	rule := &promise.Head{Tiles: h.Tiles, QueryBlocks: h.QueryBlocks, KeyBlocks: h.KeyBlocks, Z: s.z, Score: probes[:s.scoring]}
	if s.scoring < len(probes) {
		rule.Check = probes[s.scoring:]
	}
	if s.delta > 0 {
		rule.Proof = &promise.Proof{Rows: s.of.rows, Delta: s.delta}
		rand.New(s.of.fresh("order")).Shuffle(len(rule.Check), func(i, j int) { rule.Check[i], rule.Check[j] = rule.Check[j], rule.Check[i] })
	}
	slices.SortStableFunc(rule.Score, func(a, b promise.Probe) int { return cmp.Compare(a.Row, b.Row) })
	return rule
}
