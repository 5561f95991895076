package sdktest

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// problem is the shape of an attention call.
type problem struct {
	batch, heads, kvHeads, queries, keys, dim int

	dtype      tensor.Dtype
	transposed bool
}

func (p problem) String() string {
	return fmt.Sprintf("%v b%d h%d/%d q%d k%d d%d", p.dtype, p.batch, p.heads, p.kvHeads, p.queries, p.keys, p.dim)
}

// tolerance is of an output whose values are of size one.
func (p problem) tolerance() float64 {
	switch p.dtype {
	case tensor.BFloat16:
		return 2e-2
	case tensor.Float16:
		return 4e-3
	}
	return 2e-4
}

// dim is a head dimension that the strategy takes.
func (s *suite) dim() int {
	if most := s.info.Capabilities.MaxHeadDim; most > 0 {
		return min(most, 16)
	}
	return 16
}

// kvHeads is as many as the query heads where the strategy knows no groups.
func (s *suite) kvHeads() int {
	if s.info.Capabilities.GQA {
		return 2
	}
	return 4
}

func (s *suite) small() problem {
	return problem{1, 4, s.kvHeads(), 100, 100, s.dim(), s.dtypes()[0], false}
}

// dtypes are those that the strategy says it takes; float32 when it says none.
func (s *suite) dtypes() []tensor.Dtype {
	all := []tensor.Dtype{tensor.Float32, tensor.BFloat16, tensor.Float16}
	named := slices.DeleteFunc(slices.Clone(all), func(d tensor.Dtype) bool {
		return !slices.Contains(s.info.Capabilities.Dtypes, d.String())
	})
	if len(named) == 0 {
		return all[:1]
	}
	return named
}

func (s *suite) request(t *testing.T, p problem) *core.AttentionRequest {
	t.Helper()
	req := &core.AttentionRequest{
		Query:  s.make4(t, p.dtype, p.transposed, p.batch, p.heads, p.queries, p.dim),
		Key:    s.make4(t, p.dtype, p.transposed, p.batch, p.kvHeads, p.keys, p.dim),
		Value:  s.make4(t, p.dtype, p.transposed, p.batch, p.kvHeads, p.keys, p.dim),
		Output: s.make4(t, p.dtype, p.transposed, p.batch, p.heads, p.queries, p.dim),
		LSE: s.makeStrided(t, tensor.Float32, []int64{int64(p.batch), int64(p.heads), int64(p.queries)},
			tensor.RowMajor([]int64{int64(p.batch), int64(p.heads), int64(p.queries)})),
		Causal: true, Layer: -1, Seed: 7,
	}
	randomize(req.Query, 1)
	randomize(req.Key, 2)
	randomize(req.Value, 3)
	return req
}

func (s *suite) attend(t *testing.T, req *core.AttentionRequest) *core.AttentionResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req.Params = nil
	response, err := s.engine.Attend(ctx, s.info.Name, req)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// attention tries an attention strategy.
func (s *suite) attention(t *testing.T) {
	t.Run("shapes", s.shapes)
	t.Run("weights", s.weights)
	t.Run("dense", s.dense)
	t.Run("strides", s.strides)
	t.Run("future values", s.futureValues)
	t.Run("determinism", s.determinism)
	t.Run("chunks", s.chunks)
	t.Run("packed", s.packed)
	t.Run("errors", s.attentionErrors)
	t.Run("cancellation", s.cancellation)
	t.Run("leaks", s.leaks)
	t.Run("crash", s.crash)
}

// shapes checks that outputs are finite means of values, for ragged lengths,
// groups of heads, and every dtype.
func (s *suite) shapes(t *testing.T) {
	for _, dtype := range s.dtypes() {
		for _, p := range []problem{
			{1, 1, 1, 1, 1, s.dim(), dtype, false},
			{1, 2, 2, 17, 17, s.dim(), dtype, false},
			{2, 4, s.kvHeads(), 64, 64, s.dim(), dtype, false},
			{1, 4, s.kvHeads(), 127, 127, s.dim(), dtype, false},
			{1, 4, s.kvHeads(), 200, 200, s.dim(), dtype, true},
			{2, 2, 2, 130, 130, 8, dtype, false},
		} {
			t.Run(p.String(), func(t *testing.T) {
				req := s.request(t, p)
				response := s.attend(t, req)
				low, high := slices.Min(values(req.Value)), slices.Max(values(req.Value))
				for i, x := range values(req.Output) {
					if !(x >= low-p.tolerance() && x <= high+p.tolerance()) {
						t.Fatalf("output %d is %g: want a mean of values from %g to %g", i, x, low, high)
					}
				}
				for i, x := range values(req.LSE) {
					if math.IsNaN(x) || math.IsInf(x, 0) {
						t.Fatalf("lse %d is %g: every query sees a key here", i, x)
					}
				}
				if d := response.Report.Density; !(d > 0 && d <= 1) {
					t.Errorf("density %g: want a share in (0, 1]", d)
				}
			})
		}
	}
	if !s.info.Capabilities.GQA {
		_, err := s.engine.Attend(t.Context(), s.info.Name, s.request(t, problem{1, 4, 2, 16, 16, s.dim(), s.dtypes()[0], false}))
		s.want(t, err, core.ErrInvalidArgument)
	}
}

// weights recovers the weight of each pair by values that are unit vectors: it
// is zero for a key after the query, and zero or exp(score - lse) for others,
// and a row sums to one.
func (s *suite) weights(t *testing.T) {
	p := s.small()
	p.dtype = s.dtypes()[0]
	req := s.request(t, p)
	q, k, out, v := elementsOf(req.Query), elementsOf(req.Key), elementsOf(req.Output), elementsOf(req.Value)
	sums := make([]float64, p.heads*p.queries)
	scale, group := 1/math.Sqrt(float64(p.dim)), p.heads/p.kvHeads
	for first := 0; first < p.keys; first += p.dim {
		each(req.Value, func(x ...int) {
			unit := 0.0
			if x[2]-first == x[3] {
				unit = 1
			}
			v.set(unit, x...)
		})
		s.attend(t, req)
		lse := elementsOf(req.LSE)
		each(req.Output, func(x ...int) {
			h, i, j := x[1], x[2], first+x[3]
			w := out.at(x...)
			if j >= p.keys {
				return
			}
			sums[h*p.queries+i] += w
			if j > i && w != 0 {
				t.Fatalf("head %d: query %d gives key %d, which comes after it, the weight %g", h, i, j, w)
			}
			if w == 0 {
				return
			}
			dot := 0.0
			for d := range p.dim {
				dot += q.at(0, h, i, d) * k.at(0, h/group, j, d)
			}
			if want := math.Exp(dot*scale - lse.at(0, h, i)); math.Abs(w-want) > p.tolerance() {
				t.Fatalf("head %d, query %d, key %d: weight %g, and exp(score - lse) is %g: want them equal", h, i, j, w, want)
			}
		})
	}
	for i, sum := range sums {
		if math.Abs(sum-1) > 10*p.tolerance() {
			t.Fatalf("head %d: the weights of query %d sum to %g: want 1", i/p.queries, i%p.queries, sum)
		}
	}
}

// dense checks force_dense against plain attention.
func (s *suite) dense(t *testing.T) {
	for _, dtype := range s.dtypes() {
		p := s.small()
		p.dtype, p.queries, p.keys = dtype, 300, 300 // longer than a rule about blocks keeps by itself
		req := s.request(t, p)
		req.ForceDense = true
		s.attend(t, req)
		out, lse := values(req.Output), values(req.LSE)
		attend(t.Context(), req, nil)
		if most, at := farthest(out, values(req.Output)); most > p.tolerance() {
			t.Errorf("%v: with force_dense, output %d differs from plain attention by %g", dtype, at, most)
		}
		if most, at := farthest(lse, values(req.LSE)); most > p.tolerance() {
			t.Errorf("%v: with force_dense, lse %d differs from plain attention by %g", dtype, at, most)
		}
	}
}

// strides checks that [batch, len, heads, dim] gives what [batch, heads, len, dim] gives.
func (s *suite) strides(t *testing.T) {
	p := s.small()
	plain := s.request(t, p)
	s.attend(t, plain)
	p.transposed = true
	transposed := s.request(t, p)
	s.attend(t, transposed)
	if most, at := farthest(values(plain.Output), values(transposed.Output)); most > p.tolerance() {
		t.Errorf("output %d differs by %g between the two layouts", at, most)
	}
}

// futureValues checks that what comes later, even NaN, changes no earlier row.
func (s *suite) futureValues(t *testing.T) {
	req := s.request(t, s.small())
	s.attend(t, req)
	before := values(req.Output)
	v, from := elementsOf(req.Value), 60
	each(req.Value, func(x ...int) {
		if x[2] >= from {
			v.set(math.NaN(), x...)
		}
	})
	s.attend(t, req)
	after, i := values(req.Output), 0
	each(req.Output, func(x ...int) {
		if x[2] < from && before[i] != after[i] && math.Abs(before[i]-after[i]) > s.small().tolerance() || x[2] < from && after[i] != after[i] {
			t.Fatalf("output %v was %g, and is %g with NaN in the values from key %d on", x, before[i], after[i], from)
		}
		i++
	})
}

func (s *suite) determinism(t *testing.T) {
	if !s.info.Capabilities.Deterministic {
		t.Skip("it does not say that it is deterministic")
	}
	req := s.request(t, s.small())
	var first []float64
	for _, threads := range []int{1, 1, 2, 4} {
		req.Threads = threads
		s.attend(t, req)
		got := values(req.Output)
		if first == nil {
			first = got
		}
		if !slices.Equal(first, got) {
			t.Fatalf("the same call gave something else with %d threads", threads)
		}
	}
}

// part is the rows [from, to) of a tensor of [batch, heads, len, ...].
func part(t *testing.T, x *tensor.Tensor, from, to int) *tensor.Tensor {
	t.Helper()
	y, err := x.Narrow(2, from, to-from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(y.Release)
	return y
}

// chunks checks that a prompt in pieces gives what it gives at once, as far as
// the strategy's chunk_rule says: the same, or at least the same keys.
func (s *suite) chunks(t *testing.T) {
	p := s.small()
	whole, pieces := s.request(t, p), s.request(t, p)
	if !s.info.Capabilities.Chunked {
		pieces.QueryOffset = []int64{1}
		pieces.Query, pieces.Output, pieces.LSE = part(t, pieces.Query, 1, 10), part(t, pieces.Output, 1, 10), part(t, pieces.LSE, 1, 10)
		_, err := s.engine.Attend(t.Context(), s.info.Name, pieces)
		s.want(t, err, core.ErrInvalidArgument)
		return
	}
	s.attend(t, whole)
	out, lse := values(whole.Output), values(whole.LSE)
	for from := 0; from < p.queries; from += 37 {
		to := min(from+37, p.queries)
		piece := *pieces
		piece.QueryOffset = []int64{int64(from)}
		piece.Query, piece.Output, piece.LSE = part(t, pieces.Query, from, to), part(t, pieces.Output, from, to), part(t, pieces.LSE, from, to)
		piece.Key, piece.Value = part(t, pieces.Key, 0, to), part(t, pieces.Value, 0, to)
		s.attend(t, &piece)
	}
	switch rule := s.info.Capabilities.ChunkRule; rule {
	case "same":
		if most, at := farthest(out, values(pieces.Output)); most > p.tolerance() {
			t.Errorf("chunk_rule is same, and output %d of the chunks differs by %g", at, most)
		}
	case "superset":
		for i, x := range values(pieces.LSE) {
			if x < lse[i]-p.tolerance() {
				t.Fatalf("chunk_rule is superset, and lse %d of the chunks is %g, of the whole %g: keys are missing", i, x, lse[i])
			}
		}
	default:
		t.Errorf("chunk_rule %q: want same or superset for a strategy that takes chunks", rule)
	}
}

// packed checks that packed sequences do not see each other.
func (s *suite) packed(t *testing.T) {
	p := s.small()
	req := s.request(t, p)
	req.CuSeqlens = []int64{0, 33, int64(p.queries)}
	if !s.info.Capabilities.Varlen {
		_, err := s.engine.Attend(t.Context(), s.info.Name, req)
		s.want(t, err, core.ErrInvalidArgument)
		return
	}
	s.attend(t, req)
	together := values(req.Output)
	for i := range req.CuSeqlens[1:] {
		from, to := int(req.CuSeqlens[i]), int(req.CuSeqlens[i+1])
		alone := *req
		alone.CuSeqlens = nil
		alone.Query, alone.Output, alone.LSE = part(t, req.Query, from, to), part(t, req.Output, from, to), part(t, req.LSE, from, to)
		alone.Key, alone.Value = part(t, req.Key, from, to), part(t, req.Value, from, to)
		s.attend(t, &alone)
	}
	if most, at := farthest(together, values(req.Output)); most > p.tolerance() {
		t.Errorf("output %d of packed sequences differs by %g from that of each alone", at, most)
	}
}

func (s *suite) attentionErrors(t *testing.T) {
	for name, params := range s.badParameters() {
		req := s.request(t, s.small())
		req.Params = params
		_, err := s.engine.Attend(t.Context(), s.info.Name, req)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		s.want(t, err, core.ErrInvalidArgument)
	}
	s.attend(t, s.request(t, s.small()))
}

// cancellation checks that a cancelled call ends soon, without the process
// having to be killed, and that the next one is right.
func (s *suite) cancellation(t *testing.T) {
	p := s.small()
	p.queries, p.keys = 1000, 1000
	s.attend(t, s.request(t, s.small()))
	before := s.pid()
	req := s.request(t, p)
	live := s.host.Stats().Memory.Live
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		began := time.Now()
		_, err := s.engine.Attend(ctx, s.info.Name, req)
		cancel()
		if err != nil {
			s.want(t, err, core.ErrCancelled, core.ErrDeadlineExceeded)
		}
		if took := time.Since(began) - after; took > 2*time.Second {
			t.Errorf("cancelled after %v, it went on for %v: look at ctx in your loops", after, took)
		}
	}
	// The host gives memory back, or kills the process for it.
	within(10*time.Second, func() bool { return s.host.Stats().Memory.Live <= live })
	s.attend(t, s.request(t, s.small()))
	if after := s.pid(); after != before {
		t.Errorf("process %d became %d: the host had to kill it to get its memory back", before, after)
	}
}

// leaks checks that calls leave no descriptors and no memory behind.
func (s *suite) leaks(t *testing.T) {
	req := s.request(t, s.small())
	for range 20 {
		s.attend(t, req)
	}
	descriptors, live := s.descriptors(t), s.host.Stats().Memory.Live
	for range 100 {
		s.attend(t, req)
	}
	s.checkDescriptors(t, descriptors, 100)
	if after := s.host.Stats().Memory.Live; after > live {
		t.Errorf("%d segments are live, %d were 100 calls before", after, live)
	}
}

// crash kills the process in the middle of a call.
func (s *suite) crash(t *testing.T) {
	p := s.small()
	s.attend(t, s.request(t, p))
	p.queries, p.keys = 1000, 1000
	req := s.request(t, p)
	s.killDuring(t, func(ctx context.Context) error {
		_, err := s.engine.Attend(ctx, s.info.Name, req)
		return err
	})
	s.attend(t, s.request(t, s.small()))
}

// killDuring kills the process while do runs. The call is right or says that
// the plugin crashed.
func (s *suite) killDuring(t *testing.T, do func(context.Context) error) {
	t.Helper()
	victim := s.pid()
	if victim == 0 {
		t.Fatal("no process runs")
	}
	failed := make(chan error, 1)
	go func() { failed <- do(t.Context()) }()
	time.Sleep(3 * time.Millisecond)
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		s.want(t, err, core.ErrPluginCrashed)
		if !strings.Contains(err.Error(), "killed") {
			t.Errorf("the error does not say that the process was killed: %v", err)
		}
	}
	// A call that begins before the death is noticed fails with it.
	within(10*time.Second, func() bool { return s.pid() != victim })
}
