package position_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

const (
	tokens, heads, kvHeads, headDim, rotaryDim = 150, 4, 2, 32, 24
	trained                                    = 96
	tolerance                                  = 1e-5 // float32
)

// text is a sequence before any rotation.
type text struct {
	query, key, value [][][]float64 // [head][token][dim]
}

func randomText(seed uint64) text {
	random := rand.New(rand.NewPCG(seed, 1))
	rows := func(heads int) [][][]float64 {
		out := make([][][]float64, heads)
		for h := range out {
			out[h] = make([][]float64, tokens)
			for i := range out[h] {
				out[h][i] = make([]float64, headDim)
				for c := range out[h][i] {
					out[h][i][c] = random.NormFloat64()
				}
			}
		}
		return out
	}
	return text{query: rows(heads), key: rows(kvHeads), value: rows(kvHeads)}
}

// rotated turns a row by position p at the given frequencies.
func rotated(row, frequencies []float64, p float64, interleaved bool) []float64 {
	out := append([]float64(nil), row...)
	for f, frequency := range frequencies {
		a, b := f, f+len(frequencies)
		if interleaved {
			a, b = 2*f, 2*f+1
		}
		sin, cos := math.Sincos(frequency * p)
		out[a], out[b] = row[a]*cos-row[b]*sin, row[a]*sin+row[b]*cos
	}
	return out
}

// request hands over queries [first, last) and keys [0, last), rotated at their
// true positions as a model does.
func (x text) request(plan *core.PositionPlan, first, last int) *core.AttentionRequest {
	r := &core.AttentionRequest{Causal: true, Layer: -1, QueryOffset: []int64{int64(first)}, Position: plan}
	r.Query = request.Make(tensor.Float32, 1, heads, last-first, headDim)
	r.Key = request.Make(tensor.Float32, 1, kvHeads, last, headDim)
	r.Value = request.Make(tensor.Float32, 1, kvHeads, last, headDim)
	fill := func(t *tensor.Tensor, rows [][][]float64, first int, turn bool) {
		request.Fill(t, func(at [4]int) float64 {
			row := rows[at[1]][first+at[2]]
			if turn {
				row = rotated(row, plan.AppliedInvFreq, float64(first+at[2]), plan.Interleaved)
			}
			return row[at[3]]
		})
	}
	fill(r.Query, x.query, first, true)
	fill(r.Key, x.key, 0, true)
	fill(r.Value, x.value, 0, false)
	request.Outputs(r)
	return r
}

// attend is the definition: query i and key j score as if they were relative(i, j)
// tokens apart.
func (x text) attend(plan *core.PositionPlan, relative func(i, j int64) float64, head, i, rows int) []float64 {
	kv := head / (heads / kvHeads)
	weights, top, sum := make([]float64, i+1), math.Inf(-1), 0.0
	keys := make([]int, i+1)
	for j := range keys {
		keys[j] = j
	}
	if twice := int(plan.Twice); twice > 0 && rows > 1 && i >= twice { // the same key once more, at its true distance
		keys, weights = append(keys, i-twice), append(weights, 0)
	}
	for w := range weights {
		j, distance := keys[w], relative(int64(i), int64(keys[w]))
		if w > i {
			distance = float64(plan.Twice)
		}
		query := rotated(x.query[head][i], plan.InvFreq, distance, plan.Interleaved)
		for c := range query {
			weights[w] += query[c] * x.key[kv][j][c]
		}
		weights[w] *= plan.AttentionScale * plan.AttentionScale / math.Sqrt(headDim)
		top = max(top, weights[w])
	}
	out := make([]float64, headDim)
	for w, j := range keys {
		e := math.Exp(weights[w] - top)
		sum += e
		for c := range out {
			out[c] += e * x.value[kv][j][c]
		}
	}
	for c := range out {
		out[c] /= sum
	}
	return out
}

func TestAttentionFollowsThePlan(t *testing.T) {
	params := map[string]core.Params{
		"string":     {"local": int64(8)},
		"rerope":     {"window": int64(40)},
		"selfextend": {"window": int64(40)},
		"dca":        {"chunk": int64(40)},
		"yarn":       {"factor": 4.0},
		"longrope":   {"long_factor": []float64{1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4}},
	}
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		for name, scheme := range schemes() {
			for _, interleaved := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s interleaved=%v", name, interleaved), func(t *testing.T) {
					plan, err := scheme.Plan(context.Background(), &core.PositionRequest{HeadDim: headDim, InvFreq: invFreq(rotaryDim, 1e3),
						Length: tokens, TrainLength: trained, Interleaved: interleaved, Params: params[name]})
					if err != nil {
						t.Fatal(err)
					}
					checkPlan(t, backend, plan, plan.Relative)
				})
			}
		}
	})
}

func TestStringByItsFormula(t *testing.T) {
	const shift, local = 32, 8
	relative := func(i, j int64) float64 {
		if i-j >= shift {
			return float64(i - j - shift + local)
		}
		return float64(i - j)
	}
	backends.Each(t, func(t *testing.T, backend hardware.Backend) {
		for _, compat := range []string{"paper", "released"} {
			t.Run(compat, func(t *testing.T) {
				plan := planOf(t, "string", tokens, core.Params{"shift": int64(shift), "local": int64(local), "compat": compat})
				checkPlan(t, backend, plan, relative)
			})
		}
	})
}

// checkPlan holds prefill, chunks and decoding against the definition.
func checkPlan(t *testing.T, backend hardware.Backend, plan *core.PositionPlan, relative func(i, j int64) float64) {
	t.Helper()
	x := randomText(7)
	k := kernel.New(backend)
	for _, cut := range []struct {
		name   string
		chunks []int // ends
	}{
		{"prefill", []int{tokens}},
		{"chunks", []int{40, 41, 100, tokens}},
		{"decoding", []int{tokens - 2, tokens - 1, tokens}},
	} {
		first := 0
		for _, last := range cut.chunks {
			r := x.request(plan, first, last)
			if _, err := k.Attend(context.Background(), r, &core.Selection{}); err != nil {
				t.Fatal(err)
			}
			for head := range heads {
				for i := first; i < last; i++ {
					want, got := x.attend(plan, relative, head, i, last-first), request.Row(r.Output, 0, head, i-first)
					for c := range want {
						if !(math.Abs(want[c]-got[c]) <= tolerance) {
							t.Fatalf("%s: head %d, query %d, column %d: %g, want %g", cut.name, head, i, c, got[c], want[c])
						}
					}
				}
			}
			first = last
		}
	}
}
