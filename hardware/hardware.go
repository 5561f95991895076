// Package hardware runs the operations that strategies are made of, on a
// device. It knows no strategy and no wire format: only pointers, strides and
// numbers.
package hardware

import (
	"context"
	"unsafe"
)

// Dtype is the element type of a matrix.
type Dtype uint8

// The element types kernels take.
const (
	Float32 Dtype = iota
	BFloat16
	Float16
)

// Size is the bytes of one element.
func (d Dtype) Size() int {
	if d == Float32 {
		return 4
	}
	return 2
}

// Matrix is the rows of one head, borrowed: row r starts at Data +
// r*Stride elements, its columns are contiguous.
type Matrix struct {
	Data   unsafe.Pointer
	Dtype  Dtype
	Rows   int
	Cols   int
	Stride int // elements
}

// Sequence is one sequence of a batch: position 0 is its first key. A causal
// sequence has only queries with a position in [0, key rows).
type Sequence struct {
	Query  []Matrix // a matrix for each query head
	Key    []Matrix // for each kv head
	Value  []Matrix
	Output []Matrix    // for each query head; written by Attend; nil: the session only scores
	LSE    [][]float32 // for each query head, a value per query row, sinks included; written by Attend; nil: not wanted
	Offset int         // position of query row 0
}

// Rule maps a true position i to min(Scale*floor((i mod Modulo)/Group)+Offset, Limit);
// Modulo 0, Group 0 or 1 and Limit 0 mean none.
type Rule struct {
	Modulo, Group        int64
	Scale, Offset, Limit float64
}

// Band is a region of relative distance, floor(m/Chunk)-floor(n/Chunk) in
// [Low, High), in which queries and keys are taken at other positions.
type Band struct {
	Chunk, Low, High int64
	Query, Key       Rule
}

// Positions says how scores depend on positions: query and key arrive rotated
// by Applied at their true positions and are scored as if rotated by InvFreq at
// the positions of their band. Angles are computed in float64.
type Positions struct {
	Applied     []float64 // radians per token, rotary_dim/2 of them
	InvFreq     []float64
	Scale       float64 // multiplies the score, once
	Interleaved bool
	Bands       []Band // cover every distance exactly once
}

// Precision is how exact products of float32 are to be.
type Precision uint8

// What torch.set_float32_matmul_precision calls "highest" and "high".
const (
	Highest Precision = iota // float32
	// High permits three products of halves, each number being the sum of two
	// bfloat16: to 2^-15 of each product, and 2^-18 on average.
	High
)

// Problem is what all operations of one attention call share.
type Problem struct {
	Sequences []Sequence
	Scale     float64 // of the scores; never 0
	Causal    bool
	Window    int64     // 0: none
	Softcap   float64   // 0: none
	Sinks     []float32 // a logit for each query head; nil: none
	Positions *Positions
	Threads   int // 0: all
	Precision Precision
}

// Blocks is the block mask of one query head of one sequence, in compressed
// rows: row I (counted from the sequence's first query block, which is
// Offset/Size) keeps the key blocks Columns[RowPtr[I]:RowPtr[I+1]].
type Blocks struct {
	Size    int // a multiple of 16
	RowPtr  []int64
	Columns []int32 // sorted within a row
}

// Backend is the kernels of one device.
type Backend interface {
	// Name is the device and its instruction set: "cpu:avx512".
	Name() string
	// Prepare packs keys and values once for all operations of a call and
	// rotates what the bands need. The caller closes the session; it borrows
	// the matrices of p until then.
	Prepare(ctx context.Context, p *Problem) (Session, error)
	// Dots is the product of each row of a with each row of b, of one Dim, in
	// float32: [a.Blocks, b.Blocks]. It runs on the calling thread.
	Dots(a, b Pooled) []float32
	// Levels writes the level of each tile that its row sees, for each choice of
	// parts: [choices, rows, columns]. See TileLevels. It runs on the calling thread.
	Levels(t *TileLevels, level []uint8)
	// WeightedSum adds up checkpoints: for each candidate c,
	// out[c][i] = sum over s of weights[c][s]*in[s][i], accumulated in float32,
	// or float64 when wide, in source order, rounded once to the nearest even.
	// It returns the number of non-finite elements of each source.
	WeightedSum(ctx context.Context, out, in []Vector, weights [][]float64, wide bool, threads int) ([]int64, error)
	// Products adds the inner products of d, in float64, to product: [In, In],
	// row-major. It runs on the calling thread, as do those below, and gives
	// the number of non-finite elements of each source and then of the base.
	Products(ctx context.Context, d Differences, product []float64) ([]int64, error)
	// Magnitudes adds to the counts of each walk.
	Magnitudes(ctx context.Context, d Differences, walks []Walk) ([]int64, error)
	// Sparse writes what s makes of d, which has a base, rounded once.
	Sparse(ctx context.Context, out Vector, d Differences, s *SparseSum) ([]int64, error)
	// Ranked writes what r makes of d, which has a base: whole rows.
	Ranked(ctx context.Context, out Vector, d Differences, r *RankedSum) ([]int64, error)
	// Variances adds to the counts of a walk over the variances of d, which has a
	// base; see kernels.h for how they are rounded. The walk's source does not matter.
	Variances(ctx context.Context, d Differences, w Walk) ([]int64, error)
	// Squares adds to the sum of each source the squares of its differences where
	// the variance is not below limit, in the order of elements.
	Squares(ctx context.Context, d Differences, limit float32, sum []float64) ([]int64, error)
	// Majority writes the base, and where the variance is at least limit also the
	// mean by weights of the differences that have the sign of their sum.
	Majority(ctx context.Context, out Vector, d Differences, limit float32, weights []float64) ([]int64, error)
}

// Differences are checkpoints less a base, in float32; without one, the
// checkpoints as they are.
type Differences struct {
	In   []Vector
	Base *Vector
}

// Walk is a step of the search for a magnitude by its rank: of the magnitudes
// of a source whose bits from Known up are those of Prefix, Counts tells how
// many there are with each value of the bits from Shift to Known.
type Walk struct {
	Source int
	Prefix uint32
	Known  int     // 32: all
	Shift  int     // below Known
	Counts []int64 // 2^(Known-Shift)
}

// SparseSum is base + Scale * the sum of Factor*Weights[s]*d[s], without those
// whose magnitude is not in [Low[s], High[s]) and those that a draw, seen with a
// chance of Density, drops. Consensus drops those whose sign is not that of the
// sum; Normalise then divides by the weights of what is left.
type SparseSum struct {
	Weights              []float64
	Low, High            []float32
	Factor, Scale        float64
	Density              float64
	Seed                 uint64
	Element              int64 // the number of the first element, for drawing
	Consensus, Normalise bool
}

// RankedSum is base + Scale * the sum of Weights[s]*d[s]/chance over what a draw
// keeps with that chance, which is Chance at the rank of the difference in its row
// of len(Chance) elements: from the smallest, equal ones by their place. Consensus
// and Normalise are as in SparseSum. It is in float64, rounded to float32 before the
// result's dtype.
type RankedSum struct {
	Weights, Chance      []float64
	Scale                float64
	Seed                 uint64
	Element              int64 // the number of the first element, for drawing
	Consensus, Normalise bool
}

// Prober measures some rows of a call, for strategies that choose by them.
type Prober interface {
	// RowMass computes the exact softmax of chosen rows against all visible
	// keys, summed over key blocks.
	RowMass(ctx context.Context, rows []RowSet, blockSize int) ([]RowMass, error)
	// Pool averages the rows of each block of blockSize positions, in float32:
	// queries of each query head when query, else keys of each kv head, sequence
	// by sequence. The result of head h has a row per block. Queries are pooled
	// by blocks of their position; the last (and, in a chunk, the first) block
	// is the mean over the rows it has. Positions bands are not applied. With every
	// above 1, which divides blockSize, rows at its multiples stand for all, in each
	// sequence that begins at one.
	Pool(ctx context.Context, query bool, blockSize, every int) ([]Pooled, error)
}

// PoolStep is of how many rows one stands for all in a sequence that begins at a
// position, where Pool is asked for one of every.
func PoolStep(position, every int) int {
	if position%every != 0 {
		return 1
	}
	return every
}

// Session is a prepared attention call, for one goroutine at a time. A call
// that is cancelled returns the error of its context; what it wrote is void.
type Session interface {
	Prober
	// Attend writes Output and LSE of every sequence. masks has the Blocks of
	// each query head, sequence by sequence; nil: every key that is visible.
	// Rows that see no key are zero with an LSE of -Inf.
	Attend(ctx context.Context, masks []Blocks) error
	// Representative scores the last rows of each query head against all keys:
	// see RepresentativeScores. Bands, window and softcap hold as in Attend;
	// sinks do not count.
	Representative(ctx context.Context, rows int) ([]RepresentativeScores, error)
	// SquareMass scores tiles by antidiagonals (XAttention, arXiv 2503.16428): of
	// each square of stride by stride pairs, the sum of one antidiagonal times
	// scale; of each row of squares the softmax over the squares with a visible
	// pair, causal by squares; summed over the squares of a tile. A row or key
	// that is not there counts as zero. stride divides blockSize. Neither bands
	// nor softcap hold. The problem is causal.
	SquareMass(ctx context.Context, stride, blockSize int, scale float64) ([]BlockScores, error)
	// MeanScores holds every query against the mean of each key block that lies
	// wholly before its block (FlashPrefill, arXiv 2603.06199): the sum over the
	// block's queries of exp(logit - the block's largest logit). Key blocks that
	// the window leaves out, and those not before, are 0. Bands do not hold. The
	// problem is causal.
	MeanScores(ctx context.Context, blockSize int) ([]BlockScores, error)
	// AddMeans adds to the Output and LSE that Attend wrote for the same masks
	// an estimate of what was left out (FlashPrefill v2): each key block that a
	// mask drops, and that every query of the block sees whole, counts as its
	// number of keys at their mean, with the mean of their values. Bands do not
	// hold. The problem is causal and has an LSE.
	AddMeans(ctx context.Context, masks []Blocks) error
	// Precision is that of the products that Attend makes of float32 and float16.
	Precision() Precision
	Close()
}

// BlockScores is a number for each tile of one query head. Rows are the query
// blocks that the sequence touches.
type BlockScores struct {
	QueryBlocks, KeyBlocks int
	Score                  []float32
}

// Row is the scores of a query block.
func (b *BlockScores) Row(i int) []float32 { return b.Score[i*b.KeyBlocks : (i+1)*b.KeyBlocks] }

// RepresentativeScores are sums over the softmax A of the last rows of a query
// head, at token level (FlexPrefill, arXiv 2502.20766). Columns and Slashes are the
// session's, until it is closed.
type RepresentativeScores struct {
	Columns []float32 // [key rows] mean over rows of A[:, j]
	Slashes []float32 // [key rows] sum of A over pairs at distance o, divided by the number of rows
	LSE     []float32 // [rows] natural log
	Rows    int       // how many there were
}

// RowSet picks query rows of one head.
type RowSet struct {
	Sequence, Head int
	Rows           []int32 // row numbers in the sequence's query matrix
}

// RowMass is the result for one RowSet.
type RowMass struct {
	Mass []float32 // [rows, key blocks] softmax mass in each key block, rows sum to 1
	LSE  []float32 // [rows] natural log, sinks not included
}

// Pooled is block means of one head, row-major.
type Pooled struct {
	Blocks, Dim int
	Data        []float32
}

// TileLevels is what the tiles of one head are ranked by: rows are query blocks,
// columns key blocks. The score of a tile is (own + around + probability/2) / 2.5:
// own is the mean mass of the probes in its row, around the weighted mean of those
// up to len(Weight)/2 rows away that see its column (0 if none does, and own too
// where the row has no probe), probability the softmax of Similarity over what the
// row sees. Without Parts probability is the score. The level is the number of
// Thresholds that the score reaches, 0 for NaN. With several parts the choices are
// all probes but those of part 0, of part 1 and so on, and at last all; else there is
// one.
type TileLevels struct {
	Rows, Columns int
	Low, High     []int32   // of each row: it sees the columns [Low, High)
	Similarity    []float32 // [Rows, Columns]
	Row, Part     []int32   // of each probe; rows do not fall, parts are below Parts
	Mass          []float32 // [probes, Columns] and LevelRoom more; 0 where a probe sees nothing
	Parts         int       // 0, 1 or LevelParts
	Weight        []float32 // of a probe by its row less the tile's, from the least; positive
	Thresholds    []float32 // rising, positive, at most 254
}

// Choices is for how many sets of probes levels are made.
func (t *TileLevels) Choices() int {
	if t.Parts > 1 {
		return t.Parts + 1
	}
	return 1
}

// What Mass has behind its probes, and the most parts.
const (
	LevelRoom  = 64
	LevelParts = 4
)

// Vector is elements of one dtype in memory.
type Vector struct {
	Data  unsafe.Pointer
	Dtype VectorDtype
	Len   int64
}

// VectorDtype is an element type of a checkpoint.
type VectorDtype uint8

// The element types checkpoints are merged in.
const (
	VectorFloat32 VectorDtype = iota
	VectorBFloat16
	VectorFloat16
	VectorFloat64
	VectorFloat8E4M3
	VectorFloat8E5M2
)
