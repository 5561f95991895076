package cuda

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/trivium-ml/trivium/hardware"
)

// device skips the test, with the reason, where there is no GPU.
func device(t *testing.T) *Device {
	t.Helper()
	d, err := Open(FromEnvironment(), 0)
	var missing *NotAvailableError
	if errors.As(err, &missing) {
		if missing.Missing == "" || missing.Reason == "" {
			t.Fatalf("%+v does not say what is missing", missing)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestNoSuchDevice(t *testing.T) {
	_, err := Open(FromEnvironment(), 1000)
	var missing *NotAvailableError
	if !errors.As(err, &missing) {
		t.Errorf("error %v: want a NotAvailableError", err)
	}
}

// problem holds the arrays of one random problem on both sides.
type problem struct {
	heads, kvHeads, n, dim int
	q, k, v                []float64
}

func randomProblem(seed uint64, heads, kvHeads, n, dim int) problem {
	r := rand.New(rand.NewPCG(seed, 1))
	values := func(count int) []float64 {
		x := make([]float64, count)
		for i := range x {
			x[i] = float64(fromBF16(toBF16(float32(r.NormFloat64()))))
		}
		return x
	}
	return problem{heads, kvHeads, n, dim, values(heads * n * dim), values(kvHeads * n * dim), values(kvHeads * n * dim)}
}

func toBF16(x float32) uint16 {
	bits := math.Float32bits(x)
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

func fromBF16(x uint16) float32 { return math.Float32frombits(uint32(x) << 16) }

// attend is the reference: causal, over the key blocks that keep allows; with
// the LSE and the share of the whole softmax that was kept, by head and row.
func (p problem) attend(keep func(head, i, j int) bool) (out, lse, share []float64) {
	out, lse, share = make([]float64, len(p.q)), make([]float64, p.heads*p.n), make([]float64, p.heads*p.n)
	for h := range p.heads {
		kv := h * p.kvHeads / p.heads * p.n * p.dim
		for i := range p.n {
			q := p.q[(h*p.n+i)*p.dim:][:p.dim]
			weights, sum, all := make([]float64, i+1), 0.0, 0.0
			for j := range weights {
				x := 0.0
				for c := range q {
					x += q[c] * p.k[kv+j*p.dim+c]
				}
				x = math.Exp(x / math.Sqrt(float64(p.dim)))
				all += x
				if keep(h, i/Tile, j/Tile) {
					weights[j] = x
					sum += x
				}
			}
			lse[h*p.n+i], share[h*p.n+i] = math.Log(sum), sum/all
			for j, w := range weights {
				for c := range q {
					out[(h*p.n+i)*p.dim+c] += w / sum * p.v[kv+j*p.dim+c]
				}
			}
		}
	}
	return out, lse, share
}

func everything(int, int, int) bool { return true }

func upload(t *testing.T, d *Device, values []float64) Address {
	t.Helper()
	data := make([]byte, 2*len(values))
	for i, x := range values {
		binary.LittleEndian.PutUint16(data[2*i:], toBF16(float32(x)))
	}
	return uploadBytes(t, d, data)
}

func uploadBytes(t *testing.T, d *Device, data []byte) Address {
	t.Helper()
	a, err := d.Alloc(len(data))
	if err == nil {
		err = d.Upload(a, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Free(a) })
	return a
}

// bench is a problem on the device, with poisoned outputs.
type bench struct {
	problem
	gpu   *Device
	queue *Queue
	call  Attention
}

func newBench(t *testing.T, p problem) *bench {
	t.Helper()
	d := device(t)
	at := func(data Address, heads int) Tensor {
		x := tensor(1, heads, p.n, p.dim)
		x.Data = data
		return x
	}
	poison := make([]byte, 4*len(p.q))
	for i := range poison {
		poison[i] = 0xff // NaN
	}
	queue, err := d.NewQueue(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := queue.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{p, d, queue, Attention{Query: at(upload(t, d, p.q), p.heads), Key: at(upload(t, d, p.k), p.kvHeads), Value: at(upload(t, d, p.v), p.kvHeads),
		Out: at(uploadBytes(t, d, poison[:2*len(p.q)]), p.heads), LSE: uploadBytes(t, d, poison[:4*p.heads*p.n]), LSEBatch: int64(p.heads * p.n), LSEHead: int64(p.n),
		Scale: float32(1 / math.Sqrt(float64(p.dim)))}}
}

// floats reads float32 values.
func (b *bench) floats(t *testing.T, from Address, count int) []float64 {
	t.Helper()
	raw := make([]byte, 4*count)
	if err := errors.Join(b.queue.Wait(), b.gpu.Download(raw, from)); err != nil {
		t.Fatal(err)
	}
	x := make([]float64, count)
	for i := range x {
		x[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])))
	}
	return x
}

// check compares rows [first, end) of out and LSE with the reference.
func (b *bench) check(t *testing.T, first, end int, want, lse []float64) {
	t.Helper()
	raw := make([]byte, 2*len(b.q))
	if err := errors.Join(b.queue.Wait(), b.gpu.Download(raw, b.call.Out.Data)); err != nil {
		t.Fatal(err)
	}
	gotLSE := b.floats(t, b.call.LSE, b.heads*b.n)
	difference, norm := 0.0, 0.0
	for h := range b.heads {
		for r := first; r < end; r++ {
			if e := math.Abs(gotLSE[h*b.n+r] - lse[h*b.n+r]); !(e < 2e-3) {
				t.Fatalf("LSE of head %d, row %d: off by %.2e", h, r, e)
			}
			for c := range b.dim {
				at := (h*b.n+r)*b.dim + c
				x := float64(fromBF16(binary.LittleEndian.Uint16(raw[2*at:])))
				difference += (x - want[at]) * (x - want[at])
				norm += want[at] * want[at]
			}
		}
	}
	if e := math.Sqrt(difference / norm); !(e < 3e-3) {
		t.Errorf("rows %d to %d: relative error %.2e: want less than 3e-3", first, end, e)
	}
}

func TestSelectAttendCertify(t *testing.T) {
	b := newBench(t, randomProblem(5, 4, 2, 700, 128))
	selected, err := b.queue.Select(Selection{Query: b.call.Query, Key: b.call.Key, Scale: b.call.Scale, Gamma: .5, Tau: .1})
	if err != nil {
		t.Fatal(err)
	}
	b.call.Mask = &selected.Mask
	if err := errors.Join(b.queue.Attend(b.call), b.queue.Wait()); err != nil {
		t.Fatal(err)
	}
	want, lse, share := b.attend(readMask(t, b.gpu, selected.Mask, b.heads, ceilDiv(b.n, Tile)))
	b.check(t, 0, b.n, want, lse)

	const count = 9
	rows := make([]byte, 4*b.heads*count)
	row := func(h, i int) int { return (i*77 + h) % b.n }
	for h := range b.heads {
		for i := range count {
			binary.LittleEndian.PutUint32(rows[4*(h*count+i):], uint32(row(h, i)))
		}
	}
	p := Probes{Rows: uploadBytes(t, b.gpu, rows), Count: count, Dense: uploadBytes(t, b.gpu, rows), Kept: uploadBytes(t, b.gpu, rows)}
	if err := b.queue.Certify(b.call, p); err != nil {
		t.Fatal(err)
	}
	for i, kept := range b.floats(t, p.Kept, b.heads*count) {
		h := i / count
		if w := share[h*b.n+row(h, i%count)]; !(math.Abs(kept-w) < 1e-3) {
			t.Errorf("head %d, probe %d: kept %g, want %g", h, i%count, kept, w)
		}
	}
}

func TestFewQueries(t *testing.T) {
	b := newBench(t, randomProblem(6, 8, 2, 1300, 64))
	const first = 1297
	call := b.call
	for _, x := range []*Tensor{&call.Query, &call.Out} {
		x.Data += first * 64 * 2
		x.Rows = b.n - first
	}
	call.LSE += first * 4
	call.Offset = first
	if !call.decodes() {
		t.Fatal("three queries are prefill")
	}
	if err := b.queue.Attend(call); err != nil {
		t.Fatal(err)
	}
	want, lse, _ := b.attend(everything)
	b.check(t, first, b.n, want, lse)
}

// A prompt in two chunks, as sequences that share their keys, many and few queries.
func TestSequences(t *testing.T) {
	b := newBench(t, randomProblem(7, 4, 2, 900, 96))
	want, lse, _ := b.attend(everything)
	for _, border := range []int{333, 895} {
		b.call.Sequences = []Sequence{{Queries: border, Keys: border}, {QueryRow: border, Queries: b.n - border, Keys: b.n, Offset: border}}
		if border == 895 {
			b.call.Sequences = b.call.Sequences[1:]
		}
		if err := b.queue.Attend(b.call); err != nil {
			t.Fatal(err)
		}
		b.check(t, 0, b.n, want, lse)
	}
}

func TestSelectorsOnDevice(t *testing.T) {
	b := newBench(t, randomProblem(8, 4, 2, 1000, 128))
	chunk, blocks := Chunk{Query: b.call.Query, Key: b.call.Key, Scale: b.call.Scale}, ceilDiv(b.n, Tile)
	count := func(m Mask, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.queue.Wait(); err != nil {
			t.Fatal(err)
		}
		keep, tiles := readMask(t, b.gpu, m, b.heads, blocks), 0
		for h := range b.heads {
			for i := range blocks {
				for j := range i + 1 {
					if keep(h, i, j) {
						tiles++
					}
				}
			}
		}
		return tiles
	}
	all := b.heads * blocks * (blocks + 1) / 2
	if got := count(b.queue.SelectFlashPrefill(FlashPrefill{Chunk: chunk, Alpha: []float32{0}, SinkBlocks: 1, WindowBlocks: 1})); got != all {
		t.Errorf("alpha 0 keeps %d of %d tiles", got, all)
	}
	if got := count(b.queue.SelectXAttention(XAttention{Chunk: chunk, Threshold: []float32{1}, Stride: 16, Norm: 1})); got != all {
		t.Errorf("threshold 1 keeps %d of %d tiles", got, all)
	}
	if got := count(b.queue.SelectFlashPrefill(FlashPrefill{Chunk: chunk, Alpha: []float32{1, 1, 1, .5}, SinkBlocks: 1, WindowBlocks: 1})); got >= all {
		t.Errorf("alpha 1 keeps %d of %d tiles", got, all)
	}
	if got := count(b.queue.SelectXAttention(XAttention{Chunk: chunk, Threshold: []float32{.1, .1, .1, .9}, Stride: 8, Norm: 1})); got >= all {
		t.Errorf("threshold .1 keeps %d of %d tiles", got, all)
	}
}

// Turning back what was turned gives the queries again.
func TestRotateThereAndBack(t *testing.T) {
	b := newBench(t, randomProblem(9, 4, 2, 300, 64))
	zero, some := make([]float64, 32), make([]float64, 32)
	for i := range some {
		some[i] = math.Pow(1e4, -float64(i)/32)
	}
	there := Rotation{In: b.call.Query, Out: b.call.Out, Offset: 100, Applied: zero, InvFreq: some, Rule: hardware.Rule{Scale: 1}}
	back := there
	back.In, back.Out, back.Applied, back.InvFreq = there.Out, there.Out, some, zero
	if err := errors.Join(b.queue.Rotate(there), b.queue.Rotate(back), b.queue.Wait()); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 2*len(b.q))
	if err := b.gpu.Download(raw, b.call.Out.Data); err != nil {
		t.Fatal(err)
	}
	for i, want := range b.q {
		if x := float64(fromBF16(binary.LittleEndian.Uint16(raw[2*i:]))); !(math.Abs(x-want) < .04) {
			t.Fatalf("element %d is %g, want %g", i, x, want)
		}
	}
}

// A turn gives what the queries it makes give: as the kernel goes, before it, and where few queries are split over the keys.
func TestTurnedQueries(t *testing.T) {
	for name, c := range map[string]struct {
		pairs, rows int
		interleaved bool
	}{
		"halves": {32, 700, false}, "a part": {16, 700, false}, "neighbours": {32, 700, true}, "made before": {20, 700, false}, "few queries": {32, 16, false},
	} {
		b := newBench(t, randomProblem(21, 4, 2, 700, 64))
		turn := Turn{Angles: make([]float64, c.pairs), Interleaved: c.interleaved}
		for i := range turn.Angles {
			turn.Angles[i] = -200 * math.Pow(1e4, -float64(i)/float64(c.pairs))
		}
		first := b.n - c.rows
		rows := func(x Tensor) Tensor {
			x.Data += Address(2 * int64(first) * x.Stride)
			x.Rows = c.rows
			return x
		}
		b.call.Query, b.call.Out, b.call.Offset, b.call.Band = rows(b.call.Query), rows(b.call.Out), first, 150
		b.call.LSE += Address(4 * first)
		made, err := b.queue.turned(b.call.Query, false, first, nil, 0, turn)
		if err != nil {
			t.Fatal(err)
		}
		read := func() ([]byte, []float64) {
			raw := make([]byte, 2*len(b.q)-2*first*b.dim)
			if err := errors.Join(b.queue.Wait(), b.gpu.Download(raw, b.call.Out.Data)); err != nil {
				t.Fatal(err)
			}
			return raw, b.floats(t, b.call.LSE, b.heads*b.n-first)
		}
		b.call.Rotated = made
		if err := b.queue.Attend(b.call); err != nil {
			t.Fatal(err)
		}
		want, wantLSE := read()
		b.call.Rotated, b.call.Turn = nil, &turn
		if err := b.queue.Attend(b.call); err != nil {
			t.Fatal(err)
		}
		got, gotLSE := read()
		for h := range b.heads {
			for r := range c.rows {
				if e := math.Abs(gotLSE[h*b.n+r] - wantLSE[h*b.n+r]); !(e < 1e-3) {
					t.Fatalf("%s: LSE of head %d, row %d: off by %.2e", name, h, r, e)
				}
				for i := (h*b.n + r) * b.dim; i < (h*b.n+r+1)*b.dim; i++ {
					x, y := fromBF16(binary.LittleEndian.Uint16(got[2*i:])), fromBF16(binary.LittleEndian.Uint16(want[2*i:]))
					if !(math.Abs(float64(x-y)) < .02) {
						t.Fatalf("%s: head %d, row %d: %g, want %g", name, h, r, x, y)
					}
				}
			}
		}
	}
}

func readMask(t *testing.T, d *Device, m Mask, heads, blocks int) func(head, i, j int) bool {
	t.Helper()
	ints := func(a Address, count int) []int {
		raw := make([]byte, 4*count)
		if err := d.Download(raw, a); err != nil {
			t.Fatal(err)
		}
		x := make([]int, count)
		for i := range x {
			x[i] = int(int32(binary.LittleEndian.Uint32(raw[4*i:])))
		}
		return x
	}
	rows := ints(m.RowPtr, heads*blocks+1)
	cols := ints(m.Cols, rows[len(rows)-1])
	kept := make([]bool, heads*blocks*blocks)
	for r := range heads * blocks {
		for _, c := range cols[rows[r]:rows[r+1]] {
			kept[r*blocks+c] = true
		}
		if !kept[r*blocks] || !kept[r*blocks+r%blocks] {
			t.Errorf("row %d keeps %v: want the first and the diagonal block among them", r, cols[rows[r]:rows[r+1]])
		}
	}
	return func(head, i, j int) bool { return kept[(head*blocks+i)*blocks+j] }
}

// The host's share of a selection and an attention call: nothing waits for the device.
func BenchmarkHostTime(b *testing.B) {
	d, err := Open(FromEnvironment(), 0)
	if err != nil || d.Capability != 90 {
		b.Skip("no device of capability 9.0: ", err)
	}
	defer d.Close()
	queue, err := d.NewQueue(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer queue.Close()
	const n = 8192
	at := func(heads int) Tensor {
		x := tensor(1, heads, n, 128)
		if x.Data, err = d.Alloc(heads * n * 256); err != nil {
			b.Fatal(err)
		}
		return x
	}
	call := Attention{Query: at(32), Key: at(8), Value: at(8), Out: at(32), LSEHead: n, Scale: .08}
	if call.LSE, err = d.Alloc(32 * n * 4); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		selected, err := queue.Select(Selection{Query: call.Query, Key: call.Key, Scale: .08, Gamma: .9, Tau: .1, MinBlocks: 8})
		if err != nil {
			b.Fatal(err)
		}
		call.Mask = &selected.Mask
		if err := queue.Attend(call); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := queue.Wait(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
