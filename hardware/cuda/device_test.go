package cuda

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
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

// attend is the reference: causal, over the key blocks that keep allows.
func (p problem) attend(keep func(head, i, j int) bool) []float64 {
	out := make([]float64, len(p.q))
	for h := range p.heads {
		kv := h * p.kvHeads / p.heads * p.n * p.dim
		for i := range p.n {
			q := p.q[(h*p.n+i)*p.dim:][:p.dim]
			weights, sum := make([]float64, i+1), 0.0
			for j := range weights {
				if keep(h, i/Tile, j/Tile) {
					for c := range q {
						weights[j] += q[c] * p.k[kv+j*p.dim+c]
					}
					weights[j] = math.Exp(weights[j] / math.Sqrt(float64(p.dim)))
					sum += weights[j]
				}
			}
			for j, w := range weights {
				for c := range q {
					out[(h*p.n+i)*p.dim+c] += w / sum * p.v[kv+j*p.dim+c]
				}
			}
		}
	}
	return out
}

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

func TestSelectThenAttend(t *testing.T) {
	d := device(t)
	if d.Capability != 90 {
		t.Skipf("%s has compute capability %d: the kernels are for 90", d.Name, d.Capability)
	}
	p := randomProblem(5, 4, 2, 700, 128)
	at := func(data Address, heads int) Tensor {
		x := tensor(1, heads, p.n, p.dim)
		x.Data = data
		return x
	}
	poison := make([]byte, 2*len(p.q))
	for i := range poison {
		poison[i] = 0xff // NaN
	}
	call := Attention{Query: at(upload(t, d, p.q), p.heads), Key: at(upload(t, d, p.k), p.kvHeads), Value: at(upload(t, d, p.v), p.kvHeads),
		Out: at(uploadBytes(t, d, poison), p.heads), LSE: uploadBytes(t, d, make([]byte, 4*p.heads*p.n)), LSEHead: int64(p.n),
		Scale: float32(1 / math.Sqrt(float64(p.dim)))}
	queue, err := d.NewQueue(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := queue.Close(); err != nil {
			t.Error(err)
		}
	}()
	selected, err := queue.Select(Selection{Query: call.Query, Key: call.Key, Scale: call.Scale, Gamma: .5, Tau: .1})
	if err != nil {
		t.Fatal(err)
	}
	call.Mask = &selected.Mask
	if err := errors.Join(queue.Attend(call), queue.Wait()); err != nil {
		t.Fatal(err)
	}
	want := p.attend(readMask(t, d, selected.Mask, p.heads, ceilDiv(p.n, Tile)))
	raw := make([]byte, len(poison))
	if err := d.Download(raw, call.Out.Data); err != nil {
		t.Fatal(err)
	}
	difference, norm := 0.0, 0.0
	for i, w := range want {
		x := float64(fromBF16(binary.LittleEndian.Uint16(raw[2*i:])))
		difference += (x - w) * (x - w)
		norm += w * w
	}
	if e := math.Sqrt(difference / norm); !(e < 3e-3) {
		t.Errorf("relative error %.2e: want less than 3e-3 (seed 5)", e)
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
