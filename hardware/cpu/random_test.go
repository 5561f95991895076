package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// buffer is test memory of one matrix: [rows, stride], the gaps poisoned.
type buffer struct {
	hardware.Matrix
	values [][]float64 // what it holds, after rounding to its dtype
	raw    []byte
}

func newBuffer(r *rand.Rand, d hardware.Dtype, rows, cols, stride int, spread float64) *buffer {
	b := &buffer{raw: make([]byte, max(1, rows*stride)*d.Size()+64)}
	for i := range b.raw {
		b.raw[i] = 0xff // NaN in every dtype
	}
	b.Matrix = hardware.Matrix{Data: unsafe.Pointer(&b.raw[0]), Dtype: d, Rows: rows, Cols: cols, Stride: stride}
	for i := range rows {
		b.values = append(b.values, make([]float64, cols))
		for j := range cols {
			if r != nil {
				b.values[i][j] = b.store(i, j, r.NormFloat64()*spread)
			}
		}
	}
	return b
}

func (b *buffer) store(i, j int, x float64) float64 {
	at := b.raw[(i*b.Stride+j)*b.Dtype.Size():]
	switch b.Dtype {
	case hardware.Float32:
		*(*float32)(unsafe.Pointer(&at[0])) = float32(x)
	case hardware.BFloat16:
		*(*uint16)(unsafe.Pointer(&at[0])) = uint16((math.Float32bits(float32(x)) + 0x8000) >> 16)
	case hardware.Float16:
		*(*uint16)(unsafe.Pointer(&at[0])) = halfBits(x)
	}
	return b.at(i, j)
}

func (b *buffer) at(i, j int) float64 {
	at := b.raw[(i*b.Stride+j)*b.Dtype.Size():]
	switch b.Dtype {
	case hardware.Float32:
		return float64(*(*float32)(unsafe.Pointer(&at[0])))
	case hardware.BFloat16:
		return float64(math.Float32frombits(uint32(*(*uint16)(unsafe.Pointer(&at[0]))) << 16))
	}
	bits := *(*uint16)(unsafe.Pointer(&at[0]))
	e, m := int(bits>>10&31), float64(bits&1023)
	x := math.Ldexp(1024+m, e-25)
	switch {
	case e == 0:
		x = math.Ldexp(m, -24)
	case e == 31 && m != 0:
		x = math.NaN()
	case e == 31:
		x = math.Inf(1)
	}
	return math.Copysign(x, -float64(bits>>15)*2+1)
}

// halfBits is x, below 65504 in size, rounded to float16.
func halfBits(x float64) uint16 {
	sign := uint16(0)
	if math.Signbit(x) {
		sign = 0x8000
	}
	x = math.Abs(x)
	_, e := math.Frexp(x)
	e = max(e, -13)
	steps := math.RoundToEven(math.Ldexp(x, 11-e))
	return sign | uint16(steps+float64(e+13)*1024)
}

// randomCase is a problem and the memory it borrows.
type randomCase struct {
	seed            uint64
	problem         hardware.Problem
	masks           []hardware.Blocks
	query           [][]*buffer // sequence, head
	key, value, out [][]*buffer
}

func (c *randomCase) String() string {
	p := &c.problem
	s := fmt.Sprintf("seed %d: %d sequences, %d/%d heads, dim %d/%d, dtype %d, causal %v, window %d, softcap %g, precision %d, sinks %v, positions %+v, masks %v",
		c.seed, len(p.Sequences), len(c.query[0]), len(c.key[0]), c.key[0][0].Cols, c.value[0][0].Cols, c.query[0][0].Dtype,
		p.Causal, p.Window, p.Softcap, p.Precision, p.Sinks != nil, p.Positions, c.masks != nil)
	for i := range p.Sequences {
		s += fmt.Sprintf(" [%d queries at %d, %d keys]", c.query[i][0].Rows, p.Sequences[i].Offset, c.key[i][0].Rows)
	}
	return s
}

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

// newCase draws every feature of the contract.
func newCase(seed uint64) *randomCase {
	r := rand.New(rand.NewPCG(seed, 1))
	dim := pick(r, 1+r.IntN(256), 16, 64, 64, 80, 128, 128, 256)
	c := &randomCase{seed: seed}
	p := &c.problem
	p.Scale = pick(r, 1/math.Sqrt(float64(dim)), 0.7/math.Sqrt(float64(dim)))
	p.Causal = r.IntN(4) > 0
	p.Window = pick(r, 0, 0, 1+r.Int64N(300))
	p.Softcap = pick(r, 0, 0, 2+r.Float64()*50)
	p.Threads = r.IntN(4)
	p.Positions = randomPositions(r, dim)
	kvHeads := 1 + r.IntN(2)
	heads := kvHeads * (1 + r.IntN(3))
	if r.IntN(3) == 0 {
		for range heads {
			p.Sinks = append(p.Sinks, float32(r.NormFloat64()*2))
		}
	}
	dtype := hardware.Dtype(r.IntN(3))
	valueDim := pick(r, dim, dim, dim, 1+r.IntN(256))
	for range 1 + r.IntN(2) {
		c.addSequence(r, dtype, heads, kvHeads, dim, valueDim)
	}
	if r.IntN(2) == 0 {
		c.addMasks(r, heads)
	}
	p.Precision = hardware.Precision(r.IntN(2))
	return c
}

func (c *randomCase) addSequence(r *rand.Rand, dtype hardware.Dtype, heads, kvHeads, dim, valueDim int) {
	rows := pick(r, 1, 1+r.IntN(8), 1+r.IntN(200), 1+r.IntN(400))
	offset := pick(r, 0, r.IntN(300))
	keys := offset + rows + pick(r, 0, r.IntN(50))
	if !c.problem.Causal {
		keys = 1 + r.IntN(400)
	}
	if rows < 9 && r.IntN(4) == 0 {
		keys += 9000 // split over the keys
		offset += pick(r, 0, 9000)
	}
	q := hardware.Sequence{Offset: offset}
	var query, key, value, out []*buffer
	for range heads {
		query = append(query, newBuffer(r, dtype, rows, dim, dim+r.IntN(40), 1))
		out = append(out, newBuffer(nil, dtype, rows, valueDim, valueDim+r.IntN(40), 1))
		q.Query = append(q.Query, query[len(query)-1].Matrix)
		q.Output = append(q.Output, out[len(out)-1].Matrix)
		lse := make([]float32, rows)
		for i := range lse {
			lse[i] = float32(math.NaN())
		}
		q.LSE = append(q.LSE, lse)
	}
	for range kvHeads {
		key = append(key, newBuffer(r, dtype, keys, dim, dim+r.IntN(40), 1.5))
		value = append(value, newBuffer(r, dtype, keys, valueDim, valueDim+r.IntN(40), 1))
		q.Key = append(q.Key, key[len(key)-1].Matrix)
		q.Value = append(q.Value, value[len(value)-1].Matrix)
	}
	c.query, c.key = append(c.query, query), append(c.key, key)
	c.value, c.out = append(c.value, value), append(c.out, out)
	c.problem.Sequences = append(c.problem.Sequences, q)
}

func (c *randomCase) addMasks(r *rand.Rand, heads int) {
	size := 16 * (1 + r.IntN(16))
	keep := pick(r, 0.1, 0.5, 1)
	for i := range c.problem.Sequences {
		q := &c.problem.Sequences[i]
		for range heads {
			m := hardware.Blocks{Size: size, RowPtr: []int64{0}}
			for range blockCount(q.Offset, c.query[i][0].Rows, size) {
				for j := 0; j*size < c.key[i][0].Rows; j++ {
					if r.Float64() < keep {
						m.Columns = append(m.Columns, int32(j))
					}
				}
				m.RowPtr = append(m.RowPtr, int64(len(m.Columns)))
			}
			c.masks = append(c.masks, m)
		}
	}
}

func randomPositions(r *rand.Rand, dim int) *hardware.Positions {
	half := r.IntN(dim/2 + 1)
	p := &hardware.Positions{Scale: 1, Interleaved: r.IntN(2) == 0}
	for i := range half {
		f := math.Pow(10000, -float64(i)/float64(max(half, 1)))
		p.Applied, p.InvFreq = append(p.Applied, f), append(p.InvFreq, f)
	}
	identity := hardware.Rule{Scale: 1}
	low, high := int64(math.MinInt64), int64(math.MaxInt64)
	border := 1 + r.Int64N(200)
	switch r.IntN(6) {
	case 0: // STRING
		p.Bands = []hardware.Band{{Chunk: 1, Low: low, High: border, Query: identity, Key: identity},
			{Chunk: 1, Low: border, High: high, Query: hardware.Rule{Scale: 1, Offset: 17 - float64(border)}, Key: identity}}
	case 1: // Self-Extend
		grouped := hardware.Rule{Scale: 1, Group: 4}
		shifted := hardware.Rule{Scale: 1, Group: 4, Offset: float64(border - border/4)}
		p.Bands = []hardware.Band{{Chunk: 1, Low: low, High: border, Query: identity, Key: identity},
			{Chunk: 1, Low: border, High: high, Query: shifted, Key: grouped}}
	case 2: // ReRoPE
		p.Bands = []hardware.Band{{Chunk: 1, Low: low, High: border, Query: identity, Key: identity},
			{Chunk: 1, Low: border, High: high, Query: hardware.Rule{Offset: float64(border)}, Key: hardware.Rule{}}}
	case 3: // dual chunk attention
		within := hardware.Rule{Scale: 1, Modulo: border}
		p.Bands = []hardware.Band{{Chunk: border, Low: low, High: 1, Query: within, Key: within},
			{Chunk: border, Low: 1, High: 2, Query: hardware.Rule{Scale: 1, Modulo: border, Offset: float64(border), Limit: 250}, Key: within},
			{Chunk: border, Low: 2, High: high, Query: hardware.Rule{Offset: 250}, Key: within}}
	case 4: // other frequencies
		p.Scale = 1.1
		for i := range p.InvFreq {
			p.InvFreq[i] *= 0.5 + r.Float64()
		}
		p.Bands = []hardware.Band{{Chunk: 1, Low: low, High: high, Query: hardware.Rule{Scale: 0.5}, Key: hardware.Rule{Scale: 0.5}}}
	default:
		return nil
	}
	return p
}
