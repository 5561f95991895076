package cuda

/*
#include "src/select_args.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Chunk is the queries that a selector judges: of causal attention, every batch
// entry one sequence whose query row 0 is at position Offset.
type Chunk struct {
	Query, Key Tensor
	Half       bool // fp16 instead of bf16
	Scale      float32
	Softcap    float32 // > 0; XAttention's scores have none
	Offset     int
	Window     int // > 0: keys at this distance and beyond are not seen
}

// FlashPrefill asks for the tiles whose score, of every query against the mean
// of a key block, is at least Alpha of the best of the query block.
type FlashPrefill struct {
	Chunk
	Alpha                                []float32 // one, or one for each query head
	SinkBlocks, WindowBlocks, LastBlocks int       // kept always: first key blocks, nearest ones, all of the last query blocks
	MinBlocks                            int       // by score
}

// XAttention asks for the heaviest tiles by antidiagonal sums until they hold
// Threshold of a query block's score.
type XAttention struct {
	Chunk
	Threshold []float32 // one, or one for each query head
	Stride    int       // 8 or 16
	Norm      float32   // divisor of the scores
}

// Streaming asks for the first key blocks, the nearest ones, and everything for
// the last query blocks, by position alone.
type Streaming struct {
	Chunk
	SinkBlocks, WindowBlocks, LastBlocks int
}

// HasStride says whether XAttention's kernels have a stride.
func HasStride(stride int) bool { return stride == 8 || stride == 16 }

// mostKeyBlocks is what the rows of eight warps hold in shared memory.
const mostKeyBlocks = 3072

func (c Chunk) validate(name string, parameters []float32) error {
	if err := c.Query.validate("q"); err != nil {
		return err
	}
	if err := c.Key.validate("k"); err != nil {
		return err
	}
	q, k := c.Query, c.Key
	if q.Dim != k.Dim || q.Batch != k.Batch || q.Heads%k.Heads != 0 {
		return fmt.Errorf("cuda: q is %d x %d x %d x %d and k %d x %d x %d x %d: want equal batches and head_dim, q heads a multiple of k heads",
			q.Batch, q.Heads, q.Rows, q.Dim, k.Batch, k.Heads, k.Rows, k.Dim)
	}
	if c.Offset < 0 || c.Window < 0 || c.Offset+q.Rows > k.Rows {
		return fmt.Errorf("cuda: %d queries at offset %d, window %d: want them among the positions of the %d keys", q.Rows, c.Offset, c.Window, k.Rows)
	}
	if !(c.Scale > 0 && c.Softcap >= 0) {
		return fmt.Errorf("cuda: scale %g, softcap %g: want more than 0, and not negative", c.Scale, c.Softcap)
	}
	if len(parameters) != 1 && len(parameters) != q.Heads || len(parameters) > C.kMostHeads {
		return fmt.Errorf("cuda: %d values of %s for %d heads: want one, or one for each of up to %d", len(parameters), name, q.Heads, C.kMostHeads)
	}
	return nil
}

func (f FlashPrefill) validate() error {
	if err := f.Chunk.validate("alpha", f.Alpha); err != nil {
		return err
	}
	for _, alpha := range f.Alpha {
		if !(alpha >= 0 && alpha <= 1) {
			return fmt.Errorf("cuda: alpha %g: want [0, 1]", alpha)
		}
	}
	if f.SinkBlocks < 1 || f.WindowBlocks < 1 || f.LastBlocks < 0 || f.MinBlocks < 0 {
		return fmt.Errorf("cuda: %d sink, %d window, %d last and %d fewest blocks: want the first two at least 1, none negative",
			f.SinkBlocks, f.WindowBlocks, f.LastBlocks, f.MinBlocks)
	}
	return nil
}

func (s Streaming) validate() error {
	if err := s.Chunk.validate("alpha", []float32{0}); err != nil {
		return err
	}
	if s.SinkBlocks < 0 || s.WindowBlocks < 1 || s.LastBlocks < 0 {
		return fmt.Errorf("cuda: %d sink, %d window and %d last blocks: want a window of 1 or more, none negative", s.SinkBlocks, s.WindowBlocks, s.LastBlocks)
	}
	return nil
}

func (x XAttention) validate() error {
	if err := x.Chunk.validate("threshold", x.Threshold); err != nil {
		return err
	}
	for _, threshold := range x.Threshold {
		if !(threshold > 0 && threshold <= 1) {
			return fmt.Errorf("cuda: threshold %g: want (0, 1]", threshold)
		}
	}
	if !HasStride(x.Stride) {
		return fmt.Errorf("cuda: stride %d: want 8 or 16 (other strides run on the CPU)", x.Stride)
	}
	if !(x.Norm > 0) {
		return fmt.Errorf("cuda: norm %g: want more than 0", x.Norm)
	}
	if blocks := ceilDiv(x.Key.Rows, Tile); blocks > mostKeyBlocks {
		return fmt.Errorf("cuda: %d keys: the selection takes at most %d", x.Key.Rows, mostKeyBlocks*Tile)
	}
	return nil
}

// SelectFlashPrefill starts the five kernels of the selection on the queue; it
// does not wait. The mask is in memory of the queue, valid until its next
// selection of this kind or of XAttention.
func (q *Queue) SelectFlashPrefill(f FlashPrefill) (Mask, error) {
	if err := f.validate(); err != nil {
		return Mask{}, err
	}
	args := q.chunkArgs(f.Chunk, f.Alpha, f.Scale)
	args.sinks, args.near, args.last, args.fewest = C.int(f.SinkBlocks), C.int(f.WindowBlocks), C.int(f.LastBlocks), C.int(f.MinBlocks)
	dim, kvGroups, padded := compiledDim(f.Query.Dim), f.Key.Batch*f.Key.Heads, ceilDiv(int(args.k_blocks), Tile)*Tile
	heads := f.Query.Batch * f.Query.Heads
	if err := q.placeSelector(&args, 2*kvGroups*padded*dim*2, heads*int(args.q_blocks*args.k_blocks)*4); err != nil {
		return Mask{}, err
	}
	columns := ceilDiv(int(args.k_blocks), Tile)
	args.chunk = C.int(queryChunk(int(args.q_blocks), columns*kvGroups, q.device.Processors))
	kernel, pointer := attendKernel("flashprefill.cu", 80, false, f.Query.Dim, f.Half), unsafe.Pointer(&args)
	scores := launch{kernel: kernel, entry: "flashprefill_scores", threads: 256, shared: 2 * Tile * dim * 2, args: pointer,
		grid: [3]int{ceilDiv(int(args.q_blocks), int(args.chunk)), columns, kvGroups}}
	if q.device.Capability == 90 {
		queries, err := q.device.tensorMap(f.Query, Tile, f.Half)
		if err != nil {
			return Mask{}, err
		}
		scores.kernel = attendKernel("flashprefill_sm90.cu", 90, true, f.Query.Dim, f.Half)
		scores.threads, scores.shared, scores.maps = 384, 1024+4*Tile*dim*2+64, []tensorMap{queries}
	}
	return q.runSelector(&args, []launch{
		{kernel: kernel, entry: "flashprefill_pool", grid: [3]int{padded, kvGroups}, threads: 256, args: pointer},
		scores, keptRows(kernel, &args),
	})
}

// keptRows starts the kernel that turns scores, if there are any, into bits.
func keptRows(kernel Kernel, args *C.SelectArgs) launch {
	rows := int(args.batch * args.q_heads * args.q_blocks)
	return launch{kernel: kernel, entry: "flashprefill_rows", grid: [3]int{ceilDiv(rows, 8), 1}, threads: 256, args: unsafe.Pointer(args)}
}

// SelectStreaming starts the three kernels of the selection on the queue; see
// SelectFlashPrefill.
func (q *Queue) SelectStreaming(s Streaming) (Mask, error) {
	if err := s.validate(); err != nil {
		return Mask{}, err
	}
	args := q.chunkArgs(s.Chunk, []float32{0}, s.Scale)
	args.sinks, args.near, args.last = C.int(s.SinkBlocks), C.int(s.WindowBlocks), C.int(s.LastBlocks)
	if err := q.placeSelector(&args, 0, 0); err != nil {
		return Mask{}, err
	}
	args.scores = 0 // by position alone
	kernel := attendKernel("flashprefill.cu", 80, false, s.Query.Dim, s.Half)
	return q.runSelector(&args, []launch{keptRows(kernel, &args)})
}

// queryChunk is how many query blocks a block of the score kernel takes: about
// four times as many blocks of work as there are processors.
func queryChunk(queryBlocks, others, processors int) int {
	return max(1, queryBlocks*others/(4*processors))
}

// SelectXAttention starts the three kernels of the selection on the queue; see
// SelectFlashPrefill.
func (q *Queue) SelectXAttention(x XAttention) (Mask, error) {
	if err := x.validate(); err != nil {
		return Mask{}, err
	}
	args := q.chunkArgs(x.Chunk, x.Threshold, x.Scale/(float32(x.Stride)*x.Norm))
	grid := min(q.device.Processors, x.Query.Batch*x.Query.Heads*ceilDiv(int(args.q_blocks), x.Stride))
	if err := q.placeSelector(&args, 0, grid*Tile*int(args.k_blocks)*4); err != nil {
		return Mask{}, err
	}
	hopper := q.device.Capability == 90
	return q.runSelector(&args, []launch{{kernel: strideKernel(x.Stride, x.Half, hopper), entry: "xattention", grid: [3]int{grid, 1}, threads: 256,
		shared: squaresShared(hopper), args: unsafe.Pointer(&args)}})
}

// squaresShared is the dynamic shared memory of XAttention's kernels: stages of
// 64 elements of both sides, later mostKeyBlocks floats for each of 8 warps.
func squaresShared(hopper bool) int {
	if hopper {
		return 1024 + 4*(Tile+256)*64*2
	}
	return 3 * 2 * Tile * 64 * 2
}

func (q *Queue) chunkArgs(c Chunk, parameters []float32, scale float32) C.SelectArgs {
	first, blocks := c.Offset/Tile, ceilDiv(c.Key.Rows, Tile)
	args := C.SelectArgs{
		q: C.ulonglong(c.Query.Data), k: C.ulonglong(c.Key.Data), counter: C.ulonglong(q.counter),
		q_batch: C.longlong(c.Query.StrideB), q_head: C.longlong(c.Query.StrideH), q_row: C.longlong(c.Query.Stride),
		k_batch: C.longlong(c.Key.StrideB), k_head: C.longlong(c.Key.StrideH), k_row: C.longlong(c.Key.Stride),
		batch: C.int(c.Query.Batch), q_heads: C.int(c.Query.Heads), kv_heads: C.int(c.Key.Heads),
		q_len: C.int(c.Query.Rows), k_len: C.int(c.Key.Rows), q_offset: C.int(c.Offset), head_dim: C.int(c.Query.Dim),
		first_block: C.int(first), q_blocks: C.int(ceilDiv(c.Offset%Tile+c.Query.Rows, Tile)), k_blocks: C.int(blocks), words: C.int(ceilDiv(blocks, 32)),
		window: C.int(c.Window), scale: C.float(scale), softcap: C.float(c.Softcap),
	}
	for h := range min(c.Query.Heads, C.kMostHeads) {
		args.parameter[h] = C.float(parameters[min(h, len(parameters)-1)])
	}
	return args
}

// causalTiles is how many tiles the query blocks of one head may see at most.
func causalTiles(first, queryBlocks, keyBlocks int) int {
	tiles := 0
	for i := range queryBlocks {
		tiles += min(first+i+1, keyBlocks)
	}
	return tiles
}

// placeSelector gives the arguments their memory.
func (q *Queue) placeSelector(a *C.SelectArgs, pooled, scores int) error {
	rows := int(a.batch * a.q_heads * a.q_blocks)
	parts := []part{
		{&a.pooled, pooled}, {&a.scores, scores}, {&a.bits, rows * int(a.words) * 4}, {&a.row_ptr, (rows + 1) * 4},
		{&a.cols, int(a.batch*a.q_heads) * causalTiles(int(a.first_block), int(a.q_blocks), int(a.k_blocks)) * 4},
	}
	const align = 256
	total := 0
	for _, p := range parts {
		total += ceilDiv(p.bytes, align) * align
	}
	if err := q.room(&q.chosen, total); err != nil {
		return err
	}
	at := q.chosen.at
	for _, p := range parts {
		*p.at = C.ulonglong(at)
		at += Address(ceilDiv(p.bytes, align) * align)
	}
	return nil
}

// runSelector starts what scores, then what makes a mask of the bits.
func (q *Queue) runSelector(a *C.SelectArgs, scoring []launch) (Mask, error) {
	kernel, rows := Kernel{Source: "select_mask.cu", Least: 80}, int(a.batch*a.q_heads*a.q_blocks)
	for _, l := range append(scoring,
		launch{kernel: kernel, entry: "select_prefix", grid: [3]int{1, 1}, threads: 1024, args: unsafe.Pointer(a)},
		launch{kernel: kernel, entry: "select_fill", grid: [3]int{ceilDiv(rows, 32), 1}, threads: 1024, args: unsafe.Pointer(a)}) {
		if err := q.launch(l); err != nil {
			return Mask{}, err
		}
	}
	return Mask{Address(a.row_ptr), Address(a.cols)}, nil
}
