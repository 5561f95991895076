package cuda

/*
#include "src/flexindex_args.h"
*/
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// Selection asks for the FlexPrefill mask of causal attention, in blocks of 128
// tokens. The queries are the last of the keys: all of them, or the last chunk
// of so far, of at least 128.
type Selection struct {
	Query, Key           Tensor
	Half                 bool // fp16 instead of bf16
	Scale                float32
	Gamma, Tau           float32
	HeadGamma, HeadTau   []float32 // nil, or one for each query head instead
	MinBlocks, MaxBlocks int       // MaxBlocks 0: no limit
	Rule                 Rule
	Rotated              *Tensor // as in Attention
	Turn                 *Turn
	Band                 int
	Window               int     // > 0: keys at this distance and beyond are not seen
	Softcap              float32 // > 0
	Interleave           bool    // query head h reads key head h % heads of k, rather than h / group
}

// Rule is how mass becomes blocks.
type Rule int

// The rules: as the released code with its faults mended, with them, and by
// token as in the paper.
const (
	Fixed Rule = iota
	Released
	Paper
)

// kernelRules are the rules' numbers in the kernels.
var kernelRules = map[Rule]C.int{Released: 0, Fixed: 1, Paper: 2}

// Selected is the mask, in memory of the queue that is valid until its next
// Select, and what it was chosen by: float32 and int32 for each batch and head.
type Selected struct {
	Mask
	JSDistance, QueryAware Address
}

// DenseBelow is the longest prompt that FlexPrefill leaves dense.
func (s Selection) DenseBelow() int { return max(2, s.MinBlocks) * Tile }

// rotations is how many tensors the queries are.
func (s Selection) rotations() int {
	if s.Rotated != nil || s.Turn != nil {
		return 2
	}
	return 1
}

// pooledShared is the dynamic shared memory for the pooled scores of 16 rows.
func pooledShared(blocks, headDim, rotations int) int {
	return (16*(rotations*headDim+blocks) + 64*(headDim+4)) * 4
}

// pooledStatic is what that kernel takes besides.
const pooledStatic = 2048

// validate checks the request; shared is the memory of a block of the device.
func (s Selection) validate(shared int) error {
	if err := s.Query.validate("q"); err != nil {
		return err
	}
	if err := s.Key.validate("k"); err != nil {
		return err
	}
	q, k := s.Query, s.Key
	if q.Rows > k.Rows || q.Dim != k.Dim || q.Batch != k.Batch || q.Heads%k.Heads != 0 || q.Heads > C.kFlexHeads {
		return fmt.Errorf("cuda: q is %d x %d x %d x %d and k %d x %d x %d x %d: want equal batches and head_dim, no more rows of q than of k, q heads a multiple of k heads and at most %d",
			q.Batch, q.Heads, q.Rows, q.Dim, k.Batch, k.Heads, k.Rows, k.Dim, C.kFlexHeads)
	}
	if k.Rows <= s.DenseBelow() {
		return fmt.Errorf("cuda: %d tokens are dense: an index needs more than %d", k.Rows, s.DenseBelow())
	}
	if q.Rows < Tile {
		return fmt.Errorf("cuda: a chunk of %d queries: an index needs %d", q.Rows, Tile)
	}
	if most := (shared - pooledStatic - pooledShared(0, q.Dim, s.rotations())) / 64; ceilDiv(k.Rows, Tile) > most {
		return fmt.Errorf("cuda: %d tokens: the index takes at most %d on this device", k.Rows, most*Tile)
	}
	if err := (Attention{Query: q, Rotated: s.Rotated, Turn: s.Turn, Band: s.Band}).validateRotated(); err != nil {
		return err
	}
	if s.Window < 0 || s.Softcap < 0 {
		return fmt.Errorf("cuda: window %d, softcap %g: want neither of them negative", s.Window, s.Softcap)
	}
	return s.validateHeads()
}

func (s Selection) validateHeads() error {
	for _, x := range [][]float32{s.HeadGamma, s.HeadTau} {
		if x != nil && len(x) != s.Query.Heads {
			return fmt.Errorf("cuda: a gamma or tau for %d heads: q has %d", len(x), s.Query.Heads)
		}
	}
	for h := range s.Query.Heads {
		if gamma := at(s.HeadGamma, h, s.Gamma); !(gamma > 0 && gamma <= 1) {
			return fmt.Errorf("cuda: gamma %g: want (0, 1]", gamma)
		}
	}
	return nil
}

// at is the value of a head, or the one for all.
func at(heads []float32, h int, all float32) float32 {
	if heads == nil {
		return all
	}
	return heads[h]
}

// Select starts the ten kernels of the index on the queue; it does not wait.
func (q *Queue) Select(s Selection) (Selected, error) {
	if err := s.validate(q.device.Shared); err != nil {
		return Selected{}, err
	}
	if s.Turn != nil {
		var err error
		if s.Rotated, err = q.turned(s.Query, s.Half, s.Key.Rows-s.Query.Rows, nil, s.Band, *s.Turn); err != nil {
			return Selected{}, err
		}
	}
	args := q.indexArgs(s)
	if err := q.reserve(&args); err != nil {
		return Selected{}, err
	}
	scores, err := q.scoreLaunches(s, &args)
	if err != nil {
		return Selected{}, err
	}
	for _, l := range indexLaunches(s, &args, scores, q.device.Shared) {
		if err := q.launch(l); err != nil {
			return Selected{}, err
		}
	}
	return Selected{Mask: Mask{Address(args.row_ptr), Address(args.cols)}, JSDistance: Address(args.js), QueryAware: Address(args.aware)}, nil
}

// indexArgs are the numbers; reserve adds the memory.
func (q *Queue) indexArgs(s Selection) C.IndexArgs {
	blocks, heads := ceilDiv(s.Key.Rows, Tile), s.Query.Batch*s.Query.Heads
	offset := s.Key.Rows - s.Query.Rows
	tiles := tilesPerSplit(blocks, heads, 2/s.rotations()*q.device.Processors)
	maxBlocks := blocks
	if s.MaxBlocks > 0 {
		maxBlocks = min(blocks, s.MaxBlocks)
	}
	args := C.IndexArgs{
		q: C.ulonglong(s.Query.Data), k: C.ulonglong(s.Key.Data),
		q_batch: C.longlong(s.Query.StrideB), q_head: C.longlong(s.Query.StrideH), q_row: C.longlong(s.Query.Stride),
		k_batch: C.longlong(s.Key.StrideB), k_head: C.longlong(s.Key.StrideH), k_row: C.longlong(s.Key.Stride),
		batch: C.int(s.Query.Batch), q_heads: C.int(s.Query.Heads), kv_heads: C.int(s.Key.Heads),
		n: C.int(s.Key.Rows), d: C.int(s.Query.Dim), block: Tile, blocks: C.int(blocks),
		splits: C.int(ceilDiv(blocks, tiles)), tiles_per_split: C.int(tiles), words: C.int(ceilDiv(blocks, 32)),
		min_blocks: C.int(max(1, s.MinBlocks)), max_blocks: C.int(maxBlocks),
		q_offset: C.int(offset), first_block: C.int(offset / Tile), q_blocks: C.int(blocks - offset/Tile),
		scale: C.float(s.Scale), rule: kernelRules[s.Rule], window: C.int(s.Window), softcap: C.float(s.Softcap),
	}
	for h := range s.Query.Heads {
		args.gamma[h], args.tau[h] = C.float(at(s.HeadGamma, h, s.Gamma)), C.float(at(s.HeadTau, h, s.Tau))
		if args.gamma[h] >= 1 { // everything, whatever rounding makes of its sum
			args.gamma[h] = C.float(math.Inf(1))
		}
	}
	if r := s.Rotated; r != nil {
		args.q2, args.band = C.ulonglong(r.Data), C.int(s.Band)
		args.q2_batch, args.q2_head, args.q2_row = C.longlong(r.StrideB), C.longlong(r.StrideH), C.longlong(r.Stride)
	}
	if s.Interleave {
		args.interleave = 1
	}
	if heads > q.heads {
		args.done = 0
	}
	return args
}

// tilesPerSplit is how many key tiles a block of the score kernels takes: the
// fewest waves of work over the slots, the start of a block counted as 1.5 tiles.
func tilesPerSplit(blocks, heads, slots int) int {
	best, least := 1, -1.0
	for t := 1; t <= blocks; t++ {
		cost := float64(ceilDiv(heads*ceilDiv(blocks, t), slots)) * (float64(t) + 1.5)
		if least < 0 || cost < least {
			best, least = t, cost
		}
	}
	return best
}

// part is a piece of the scratch memory.
type part struct {
	at    *C.ulonglong
	bytes int
}

func (q *Queue) indexParts(a *C.IndexArgs) []part {
	heads, blocks, n := int(a.batch*a.q_heads), int(a.blocks), int(a.n)
	tiles, words := indexTiles(a), int(a.words)
	searches := 3 * 2 * heads * C.kBins1
	plain := 0
	if q.device.Capability != 90 {
		plain = heads * Tile * n * 4
	}
	return []part{
		{&a.scores, plain},
		{&a.partial, heads * int(a.splits) * Tile * 8}, {&a.vertical, heads * n * 4}, {&a.slash, heads * n * 4},
		{&a.k_mean, int(a.batch*a.kv_heads) * blocks * int(a.d) * 4}, {&a.v_pool, heads * blocks * 4},
		{&a.estimate_part, heads * blocks * C.kParts * 4}, {&a.v_part, heads * blocks * C.kParts * 4},
		{&a.s_pool, heads * blocks * 4}, {&a.estimate, heads * blocks * 4}, {&a.js, heads * 4}, {&a.aware, heads * 4},
		{&a.block_p, heads * tiles * 4}, {&a.hist_count, searches * 4}, {&a.hist_low, searches * 8},
		{&a.state, 2 * heads * int(unsafe.Sizeof(C.IndexState{}))}, {&a.v_bits, heads * words * 4},
		{&a.s_bits, heads * (words + 1) * 4}, {&a.row_ptr, (heads*int(a.q_blocks) + 1) * 4}, {&a.cols, heads * tiles * 4},
	}
}

// indexTiles is the causal tiles of the query blocks of one head.
func indexTiles(a *C.IndexArgs) int {
	return causalTiles(int(a.first_block), int(a.q_blocks), int(a.blocks))
}

// reserve places the parts in the queue's scratch, which grows when it must:
// then it waits for the work that still uses the old one.
func (q *Queue) reserve(a *C.IndexArgs) error {
	const align = 256
	total := 0
	for _, p := range q.indexParts(a) {
		total += ceilDiv(p.bytes, align) * align
	}
	heads := int(a.batch * a.q_heads)
	if total > q.size || heads > q.heads {
		if err := q.grow(total, heads); err != nil {
			return err
		}
	}
	at := q.scratch
	for _, p := range q.indexParts(a) {
		*p.at = C.ulonglong(at)
		at += Address(ceilDiv(p.bytes, align) * align)
	}
	a.done = C.ulonglong(q.done)
	return nil
}

func (q *Queue) grow(size, heads int) error {
	if err := q.Wait(); err != nil {
		return err
	}
	for _, a := range []*Address{&q.scratch, &q.done} {
		if err := q.device.Free(*a); err != nil {
			return err
		}
		*a = 0
	}
	q.size, q.heads = 0, 0
	var err error
	if q.scratch, err = q.device.Alloc(size); err != nil {
		return err
	}
	if q.done, err = q.zeroed((heads + 1) * 4); err != nil {
		return err
	}
	q.size, q.heads = size, heads
	return nil
}

// scoresShared is the dynamic shared memory of the score kernels: two K tiles,
// the slabs of eight warps, barriers and partial sums.
func scoresShared(headDim int) int {
	return 1024 + 2*Tile*headDim*2 + 8*8*136*4 + 40 + 8*128*4 + 8*144*4
}

// scoreLaunches is the representative attention: on the tensor cores of
// Hopper, or in plain arithmetic.
func (q *Queue) scoreLaunches(s Selection, a *C.IndexArgs) ([]launch, error) {
	heads, args := int(a.batch*a.q_heads), unsafe.Pointer(a)
	if q.device.Capability != 90 {
		plain, shared := indexKernel("flexindex_scores_plain.cu", element(s.Half)), (2*int(a.d)+34)*4
		return []launch{
			{kernel: plain, entry: "flexindex_plain_rows", grid: [3]int{Tile, heads}, threads: 256, shared: shared, args: args},
			{kernel: plain, entry: "flexindex_plain_sums", grid: [3]int{ceilDiv(int(a.n), 256), heads}, threads: 256, shared: shared, args: args},
		}, nil
	}
	tensors, features := []Tensor{s.Query, s.Key}, []Feature(nil)
	if s.Rotated != nil {
		tensors, features = append(tensors, *s.Rotated), []Feature{Bands}
	}
	maps := make([]tensorMap, len(tensors))
	for i, t := range tensors {
		var err error
		if maps[i], err = q.device.tensorMap(t, Tile, s.Half); err != nil {
			return nil, err
		}
	}
	kernel, grid, shared := scoresKernel(s.Query.Dim, s.Half, features...), [3]int{int(a.splits), heads}, scoresShared(compiledDim(s.Query.Dim))
	return []launch{
		{kernel: kernel, entry: "flexindex_rows", grid: grid, threads: 256, shared: shared, maps: maps, args: args},
		{kernel: kernel, entry: "flexindex_sums", grid: grid, threads: 256, shared: shared, maps: maps, args: args},
	}, nil
}

func element(half bool) string {
	if half {
		return "FP16"
	}
	return ""
}

func indexLaunches(s Selection, a *C.IndexArgs, scores []launch, limit int) []launch {
	heads, blocks, queryBlocks := int(a.batch*a.q_heads), int(a.blocks), int(a.q_blocks)
	args, choose := unsafe.Pointer(a), indexKernel("flexindex_select.cu", element(s.Half))
	longest := max(int(a.n), indexTiles(a))
	search, rows := [3]int{ceilDiv(longest, 4096), 2 * heads}, [3]int{ceilDiv(heads*queryBlocks, 32), 1}
	all := []launch{{kernel: choose, entry: "flexindex_pool", grid: [3]int{blocks, int(a.batch * a.kv_heads)}, threads: 256, args: args}}
	return append(append(all, scores...), []launch{
		{kernel: choose, entry: "flexindex_blocks", grid: [3]int{ceilDiv(queryBlocks, 16), heads}, threads: 256,
			shared: pooledShared(blocks, int(a.d), s.rotations()), limit: limit - pooledStatic, args: args},
		{kernel: choose, entry: "flexindex_level0", grid: search, threads: 256, args: args},
		{kernel: choose, entry: "flexindex_level1", grid: search, threads: 256, args: args},
		{kernel: choose, entry: "flexindex_level2", grid: search, threads: 256, args: args},
		{kernel: choose, entry: "flexindex_choose", grid: [3]int{2, heads}, threads: 1024, shared: blocks * 4, args: args},
		{kernel: choose, entry: "flexindex_count", grid: rows, threads: 1024, args: args},
		{kernel: choose, entry: "flexindex_fill", grid: rows, threads: 1024, args: args},
	}...)
}
