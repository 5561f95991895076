package kernel

import (
	"context"
	"math"
	"time"
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
)

// Call is one attention call, prepared: keys and values are packed once, and
// selecting and attending share them.
type Call struct {
	Request *core.AttentionRequest // valid, its parameters complete
	Params  core.Params
	Heads   int // query heads
	Problem *hardware.Problem
	Session hardware.Session // runs on all threads by itself; one operation at a time; nil: a GPU measures
	Prober  hardware.Prober  // the session, or what measures on a GPU

	info     core.Info
	kernel   *Kernel
	lse      *tensor.Tensor // the caller's, or the call's own
	measured []measurement  // dense LSE of rows the strategy scored, by slot
	prepared time.Duration
	notes    []string
}

// measurement is the exact dense LSE of some query rows of one head.
type measurement struct {
	first int // the first of the rows, which follow each other
	lse   []float32
}

// open prepares the sequences of a valid request. The caller closes the call.
func (k *Kernel) open(ctx context.Context, info core.Info, req *core.AttentionRequest, params core.Params) (*Call, error) {
	c := &Call{Request: req, Params: params, Heads: req.Query.Dim(1), info: info, kernel: k, lse: req.LSE}
	if err := c.describe(); err != nil {
		return nil, err
	}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// prepare packs the call's sequences.
func (c *Call) prepare(ctx context.Context) error {
	start := time.Now()
	session, err := c.kernel.backend.Prepare(ctx, c.Problem)
	if err != nil {
		return err
	}
	c.Session, c.Prober, c.prepared = session, session, time.Since(start)
	c.measured = make([]measurement, len(c.Problem.Sequences)*c.Heads)
	return nil
}

// grid is the blocks of each of the call's sequences.
func (c *Call) grid(blockSize int) []core.BlockExtent {
	grid := make([]core.BlockExtent, len(c.Problem.Sequences))
	for i := range grid {
		s := &c.Problem.Sequences[i]
		rows := s.Query[0].Rows
		grid[i].KeyBlocks = (s.Key[0].Rows + blockSize - 1) / blockSize
		if rows > 0 {
			grid[i].FirstQueryBlock = int(math.Floor(float64(s.Offset) / float64(blockSize)))
			grid[i].QueryBlocks = int(math.Floor(float64(s.Offset+rows-1)/float64(blockSize))) - grid[i].FirstQueryBlock + 1
		}
	}
	return grid
}

// Close ends the backend's session.
func (c *Call) Close() { c.Session.Close() }

// Slot is the index of a query head of a sequence in every list that the
// session takes or gives by query head.
func (c *Call) Slot(sequence, head int) int { return sequence*c.Heads + head }

// KeySlot is the same for the kv head of a query head.
func (c *Call) KeySlot(sequence, head int) int {
	kv := len(c.Problem.Sequences[sequence].Key)
	return sequence*kv + head*kv/c.Heads
}

// Note adds a line to the report.
func (c *Call) Note(text string) { c.notes = append(c.notes, text) }

// Measured records the dense LSE of the last rows of a head, so that their
// coverage is reported for free.
func (c *Call) Measured(sequence, head int, lse []float32) {
	rows := c.Problem.Sequences[sequence].Query[head].Rows
	c.measured[c.Slot(sequence, head)] = measurement{first: rows - len(lse), lse: lse}
}

// describe turns the request into the problem a backend solves.
func (c *Call) describe() error {
	r := c.Request
	if c.lse == nil && r.Output != nil {
		lse, err := tensor.Make(tensor.Float32, r.Query.Shape()[:3]...)
		if err != nil {
			return core.Errorf(core.ErrOutOfMemory, "lse: %w", err)
		}
		c.lse = lse
	}
	c.Problem = &hardware.Problem{Scale: r.Scale, Causal: r.Causal, Window: r.Window, Softcap: r.Softcap,
		Sinks: r.Sinks, Positions: positions(r.Position), Threads: r.Threads}
	if r.Precision == core.PrecisionHigh {
		c.Problem.Precision = hardware.High
	}
	dtype, err := matrixDtype(r.Query.Dtype())
	if err != nil {
		return err
	}
	for _, e := range r.Extents() {
		c.Problem.Sequences = append(c.Problem.Sequences, c.sequence(dtype, e))
	}
	return nil
}

func (c *Call) sequence(dtype hardware.Dtype, e core.SequenceExtent) hardware.Sequence {
	r := c.Request
	s := hardware.Sequence{
		Query:  matrices(r.Query, dtype, e.Batch, e.QueryStart, e.QueryEnd),
		Key:    matrices(r.Key, dtype, e.Batch, e.KeyStart, e.KeyEnd),
		Value:  matrices(r.Value, dtype, e.Batch, e.KeyStart, e.KeyEnd),
		Offset: e.Offset,
	}
	if c.interleaves() {
		s.Key, s.Value = repeat(s.Key, c.Heads), repeat(s.Value, c.Heads)
	}
	if r.Output == nil {
		return s
	}
	s.Output = matrices(r.Output, dtype, e.Batch, e.QueryStart, e.QueryEnd)
	s.LSE = make([][]float32, c.Heads)
	for h := range s.LSE {
		s.LSE[h] = lseRows(c.lse, e.Batch, h)[e.QueryStart:e.QueryEnd]
	}
	return s
}

// interleaves says whether query head h reads kv head h mod kv_heads, rather
// than h / group.
func (c *Call) interleaves() bool {
	return c.Params.Bool("gqa_interleave") && c.Request.Key.Dim(1) < c.Heads
}

// repeat gives each query head its own kv head; the backend groups by order
// and cannot group these.
func repeat(kv []hardware.Matrix, heads int) []hardware.Matrix {
	all := make([]hardware.Matrix, heads)
	for h := range all {
		all[h] = kv[h%len(kv)]
	}
	return all
}

// matrices views rows [start, end) of every head of one batch row.
func matrices(t *tensor.Tensor, dtype hardware.Dtype, batch, start, end int) []hardware.Matrix {
	out := make([]hardware.Matrix, t.Dim(1))
	for h := range out {
		out[h] = hardware.Matrix{Dtype: dtype, Rows: end - start, Cols: t.Dim(3), Stride: t.Stride(2)}
		if end > start {
			at := batch*t.Stride(0) + h*t.Stride(1) + start*t.Stride(2)
			out[h].Data = unsafe.Add(t.Pointer(), at*dtype.Size())
		}
	}
	return out
}

// rowsFrom views rows [start, end) of a matrix.
func rowsFrom(m hardware.Matrix, start, end int) hardware.Matrix {
	if end > start {
		m.Data = unsafe.Add(m.Data, start*m.Stride*m.Dtype.Size())
	}
	m.Rows = end - start
	return m
}

// lseRows is the LSE of one head, one value per query of the request.
func lseRows(t *tensor.Tensor, batch, head int) []float32 {
	at := (batch*t.Stride(0) + head*t.Stride(1)) * hardware.Float32.Size()
	return unsafe.Slice((*float32)(unsafe.Add(t.Pointer(), at)), t.Dim(2))
}

func matrixDtype(d tensor.Dtype) (hardware.Dtype, error) {
	switch d {
	case tensor.Float32:
		return hardware.Float32, nil
	case tensor.BFloat16:
		return hardware.BFloat16, nil
	case tensor.Float16:
		return hardware.Float16, nil
	}
	return 0, core.Invalid("", "dtype %v: want float32, bfloat16 or float16", d)
}
