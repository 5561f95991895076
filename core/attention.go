package core

import (
	"context"
	"time"

	"github.com/trivium-ml/trivium/core/tensor"
)

// AttentionStrategy decides which keys a query looks at. Selecting blocks is
// all a strategy must do; the shared kernel then attends to them. One that
// computes the output in its own way also implements Attender.
type AttentionStrategy interface {
	Strategy
	// Select chooses tiles. It borrows the tensors of req until it returns and
	// does not look at Output and LSE.
	Select(ctx context.Context, req *AttentionRequest) (*Selection, error)
}

// Attender is an AttentionStrategy that computes the output itself.
type Attender interface {
	AttentionStrategy
	// Attend writes req.Output and req.LSE in place. It borrows the tensors of
	// req until it returns, by when nothing writes to them any more.
	Attend(ctx context.Context, req *AttentionRequest) (*AttentionResponse, error)
}

// Starter is an Attender that can leave the waiting to its caller.
type Starter interface {
	Attender
	// Start begins what Attend does and returns while it runs elsewhere. It
	// gives nil and no error when it would have to wait itself: call Attend.
	// After it gave a call, the caller ends it with Finish.
	Start(ctx context.Context, req *AttentionRequest) (StartedAttention, error)
}

// StartedAttention is an attention call that runs elsewhere. One goroutine at a
// time uses it.
type StartedAttention interface {
	// Wait waits on the calling thread for at most limit. It reports whether
	// Finish has nothing to wait for; it also returns early, with false.
	Wait(limit time.Duration) bool
	// Finish waits for the end of the call, or of its context, and gives what
	// Attend does. Nothing writes to the tensors any more when it returns.
	Finish() (*AttentionResponse, error)
}

// AttentionRequest is one attention call.
//
// Queries and keys lie on one axis of index: query row i of batch row b has
// index QueryOffset[b]+i, key row j has index j. The sequence of a batch row is
// [KeyStart[b], KeyEnd[b]); the position of a token is its index minus
// KeyStart[b]. A query sees key j when j is in the sequence, j <= its own index
// if Causal, and the distance is below Window if there is one. A causal query
// whose index lies outside of its sequence is padding: its output is zero and
// its lse -inf, as for any query that sees no key.
type AttentionRequest struct {
	Query *tensor.Tensor // [batch, q_heads, q_len, head_dim], head_dim contiguous
	Key   *tensor.Tensor // [batch, kv_heads, k_len, head_dim], q_heads a multiple of kv_heads
	Value *tensor.Tensor // [batch, kv_heads, k_len, head_dim]

	Output *tensor.Tensor // [batch, q_heads, q_len, head_dim], dtype of Query; written
	LSE    *tensor.Tensor // [batch, q_heads, q_len] float32, natural log; written; nil: not wanted

	QueryOffset []int64 // per batch row; nil: 0
	KeyStart    []int64 // per batch row; nil: 0
	KeyEnd      []int64 // per batch row; nil: k_len

	// CuSeqlens packs several sequences into batch row 0: sequence s is the
	// rows [CuSeqlens[s], CuSeqlens[s+1]) of queries and of keys alike. It
	// excludes QueryOffset, KeyStart and KeyEnd.
	CuSeqlens []int64

	Scale   float64 // 0: 1/sqrt(head_dim)
	Causal  bool
	Window  int64     // keys at distance >= Window are not seen; 0: no window
	Softcap float64   // scores become Softcap*tanh(score/Softcap); 0: none
	Sinks   []float32 // a logit per query head that joins the softmax without a value; nil: none

	Precision Precision // of float32 products; empty: PrecisionHighest

	Position *PositionPlan // nil: query and key are used as they are
	Mask     *BlockMask    // the caller's, for strategies that take one
	Params   Params
	Layer    int // of the model, for per-layer parameters; -1: unknown
	Threads  int // 0: all the process may use
	Seed     int64

	WantMask   bool // return the blocks that were kept
	ProbeRows  int  // measure coverage on this many random rows of each head; 0: only what is free
	ForceDense bool // attend to everything, to compare

	// Bound is how the lower bound of coverage is made: BoundNormal, which "" is,
	// or BoundProven, for which the probe rows are drawn apart from all others.
	Bound string
	// Delta is the probability, over the draw of the rows, that a proven bound of a
	// head does not hold; 0: DefaultDelta.
	Delta float64

	// On a device the work is started, not awaited: it waits for Ready and reaches
	// Done. nil: inputs are ready now, and the call returns when the work is done.
	Ready, Done *tensor.Fence
	// OmitReport leaves out of the report what would cost a wait for the device.
	OmitReport bool
}

// How the lower bound of a head's coverage is made.
const (
	// BoundNormal is some standard errors below the mean over the rows: right where
	// the mean of so many rows is distributed as a normal variable is.
	BoundNormal = "normal"
	// BoundProven supposes nothing of the rows' coverage. It fails with probability
	// delta at most: see strategies/attention/kernel/bound.
	BoundProven = "proven"
)

// DefaultDelta is the probability that a proven bound fails, unless asked otherwise.
const DefaultDelta = 0.01

// Precision is how exact products of float32 are to be, in the words of
// torch.set_float32_matmul_precision.
type Precision string

// The precisions of a request.
const (
	PrecisionHighest Precision = "highest" // float32
	// PrecisionHigh permits three products of bfloat16 halves where hardware makes
	// those faster: off by 2^-15 of each product at most, 2^-18 on average.
	PrecisionHigh Precision = "high"
)

// Selection is what a strategy chose.
type Selection struct {
	Mask *BlockMask // nil: everything
	// Reason says why a strategy attends to everything that was not asked to;
	// empty where everything is as asked.
	Reason string
	Heads  []HeadReport // by sequence and query head; may be nil
}

// AttentionResponse is what a call gives back beside its output.
type AttentionResponse struct {
	Report Report
	Mask   *BlockMask // when wanted; nil: everything was attended to
}

// Report says what was computed, per head, and how long it took.
type Report struct {
	Strategy string `json:"strategy"`
	Position string `json:"position,omitempty"`
	Backend  string `json:"backend"` // "cpu:avx512"
	// Precision is that of the products of float32 and float16 that were made; empty: not known.
	Precision Precision    `json:"precision,omitempty"`
	Plugin    string       `json:"plugin,omitempty"`
	Threads   int          `json:"threads"`
	Density   float64      `json:"density"`            // kept tiles / (causal) tiles, over all heads
	Coverage  *float64     `json:"coverage,omitempty"` // mean over heads; nil: not measured
	Times     Times        `json:"times"`
	Heads     []HeadReport `json:"heads,omitempty"` // by sequence and query head
	Notes     []string     `json:"notes,omitempty"` // each fallback, copy, dropped capability
}

// Times are wall-clock milliseconds.
type Times struct {
	Select    float64 `json:"select_ms"`
	Attend    float64 `json:"attend_ms"`
	Measure   float64 `json:"measure_ms"` // of coverage, on the probe rows
	Transport float64 `json:"transport_ms"`
	Copy      float64 `json:"copy_ms"`
}

// HeadReport is what happened to one query head of one sequence.
type HeadReport struct {
	Sequence int    `json:"sequence"`
	Head     int    `json:"head"`
	Pattern  string `json:"pattern"` // "dense", "vertical_slash", "query_aware", ...
	Kept     int64  `json:"kept_blocks"`
	Blocks   int64  `json:"blocks"`
	// Density is Kept / Blocks.
	Density float64 `json:"density"`
	// Coverage is the attention mass kept, mean over ProbeRows rows, with the
	// dense softmax of those rows as the measure; nil: not measured.
	Coverage      *float64 `json:"coverage,omitempty"`
	CoverageLower *float64 `json:"coverage_lower,omitempty"` // confidence bound over all rows
	ProbeRows     int      `json:"probe_rows,omitempty"`
	// Bound is how CoverageLower was made, BoundNormal or BoundProven; empty where
	// there is none. Delta is the probability that a proven one does not hold.
	Bound string  `json:"bound,omitempty"`
	Delta float64 `json:"delta,omitempty"`
	// CoverageLowerAll is a proven bound too: those of all heads of the call hold at
	// once, but with probability Delta.
	CoverageLowerAll *float64 `json:"coverage_lower_all,omitempty"`
	JSDistance       *float64 `json:"js_distance,omitempty"` // FlexPrefill's sqrt(JSD)
	BlocksAdded      int64    `json:"blocks_added,omitempty"`
}
