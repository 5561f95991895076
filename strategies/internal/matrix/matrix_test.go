// Package matrix_test pairs every attention strategy with every position strategy.
package matrix_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/hardware"
	"github.com/trivium-ml/trivium/strategies/all"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
	"github.com/trivium-ml/trivium/strategies/position"
)

// The matrix: every attention strategy with every position strategy, both
// lists from the registries, float32 against sums in float64 over an explicit
// n x n table of relative positions and kept pairs.
const (
	heads, kvHeads, headDim, rotaryDim = 2, 1, 16, 12
	trained                            = 96
	block                              = 16
	tolerance                          = 1e-5
)

// sparser are parameters, by name, that make strategies drop blocks at this
// length; strategies take those that they have. A new strategy is in the matrix
// with its defaults before anyone adds to this list.
var sparser = core.Params{
	"block_size": int64(block), "gamma": 0.6, "min_budget": int64(32), "threshold": 0.5, "stride": int64(4), "alpha": 0.9,
	"sink": int64(16), "recent": int64(32), "vertical": int64(32), "slash": int64(32), "sink_blocks": int64(1),
	"window_blocks": int64(1), "last_blocks": int64(1), "patterns": "../../attention/minference/testdata/patterns.json",
}

// nearer are parameters that bring borders of bands within this length.
var nearer = core.Params{"factor": 4.0, "shift": int64(40), "local": int64(8), "window": int64(40), "chunk": int64(40)}

func choose(params core.Params, info core.Info) core.Params {
	chosen := core.Params{}
	for name, value := range params {
		if _, ok := info.Parameter(name); ok {
			chosen[name] = value
		}
	}
	return chosen
}

func TestMatrix(t *testing.T) {
	short, long := newText(11, 400), newText(12, 1100)
	for name, plan := range plans(t) {
		t.Run(name, func(t *testing.T) {
			want, wantLong := newScores(short, plan), sync.OnceValue(func() *scores { return newScores(long, plan) })
			backends.Each(t, func(t *testing.T, backend hardware.Backend) {
				for _, a := range all.Attention(kernel.New(backend)) {
					t.Run(a.Info().Name, func(t *testing.T) {
						if sparse, _ := checkPair(t, a.(core.Attender), plan, want); sparse || a.Info().Name == "dense" || backend.Name() == "oracle" {
							return
						}
						// Some strategies are dense below a length; only the kernels are fast enough to go on.
						if sparse, notes := checkPair(t, a.(core.Attender), plan, wantLong()); !sparse {
							t.Errorf("every block is kept, so the case shows nothing of a mask: %q", notes)
						}
					})
				}
			})
		})
	}
}

// Selectors choose by the scores of the plan. A plan that turns all queries by a
// constant must choose what is chosen of queries that were turned before; that
// of means of blocks too, since these turn as a whole. A strategy that does not
// says so in its notes.
func TestSelectorsFollowThePlan(t *testing.T) {
	const turn, tokens = -300, 1100
	x := newText(13, tokens)
	plain := planFor(t, position.RoPE(), nil)
	shifted := *plain
	shifted.Bands = []core.Band{{Chunk: 1, Low: math.MinInt64, High: math.MaxInt64, Query: core.Shift(turn), Key: core.Identity()}}
	turned := x.request(plain, 0, tokens)
	request.Fill(turned.Query, func(at [4]int) float64 {
		return rotated(x.query[at[1]][at[2]], plain.InvFreq, float64(at[2]+turn))[at[3]]
	})
	for _, s := range all.Attention(kernel.New(backends.Best(t))) {
		if s.Info().Name == "custom" {
			continue // its mask is the caller's
		}
		t.Run(s.Info().Name, func(t *testing.T) {
			chosen := func(r *core.AttentionRequest, plan *core.PositionPlan) *core.BlockMask {
				r.Params, r.Position = choose(sparser, s.Info()), plan
				selection, err := s.(core.AttentionStrategy).Select(context.Background(), r)
				if err != nil {
					t.Fatal(err)
				}
				return selection.Mask
			}
			want, got, unturned := chosen(turned, nil), chosen(x.request(plain, 0, tokens), &shifted), chosen(x.request(plain, 0, tokens), nil)
			if (want == nil) != (got == nil) {
				t.Fatalf("dense %t, want %t", got == nil, want == nil)
			}
			if want == nil || s.Info().Name == "streaming" { // they look at no score
				return
			}
			// Rounding may move what lies at a threshold.
			off, apart := differing(want, got), differing(want, unturned)
			if blind := slices.ContainsFunc(s.Info().Notes, func(note string) bool { return strings.Contains(note, "without the bands of a position plan") }); blind {
				if off <= 0.01 {
					t.Errorf("it follows the plan, and its notes say that it does not")
				}
				return
			}
			if off > 0.01 {
				t.Errorf("%.3f of the blocks are others than those of queries that were turned before", off)
			}
			if apart < 3*max(off, 0.01) {
				t.Errorf("the turn changes %.3f of the blocks: the case shows nothing", apart)
			}
		})
	}
}

// differing is the share of blocks that are in one of two masks only.
func differing(a, b *core.BlockMask) float64 {
	off, all := 0, 0
	for h := range heads {
		for i := range a.Sequences[0].QueryBlocks {
			x, y := a.Row(0, h, i), b.Row(0, h, i)
			all += len(x)
			for _, column := range x {
				if !slices.Contains(y, column) {
					off++
				}
			}
			for _, column := range y {
				if !slices.Contains(x, column) {
					off++
				}
			}
		}
	}
	return float64(off) / float64(all)
}

// plans has one for each position strategy, and one more for each further choice
// of a parameter that is a list of choices.
func plans(t *testing.T) map[string]*core.PositionPlan {
	t.Helper()
	made := map[string]*core.PositionPlan{}
	for _, s := range all.Position() {
		made[s.Info().Name] = planFor(t, s.(core.PositionStrategy), nil)
		for _, p := range s.Info().Parameters {
			for _, choice := range p.Choices {
				if choice != p.Default {
					made[fmt.Sprintf("%s %s=%s", s.Info().Name, p.Name, choice)] = planFor(t, s.(core.PositionStrategy), core.Params{p.Name: choice})
				}
			}
		}
	}
	return made
}

func planFor(t *testing.T, s core.PositionStrategy, choice core.Params) *core.PositionPlan {
	t.Helper()
	frequencies := make([]float64, rotaryDim/2)
	for i := range frequencies {
		frequencies[i] = math.Pow(1000, -2*float64(i)/rotaryDim)
	}
	params := choose(nearer, s.Info())
	maps.Copy(params, choice)
	plan, err := s.Plan(context.Background(), &core.PositionRequest{HeadDim: headDim, InvFreq: frequencies, Length: 400,
		TrainLength: trained, Params: params})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Validate(headDim); err != nil {
		t.Fatal(err)
	}
	return plan
}

// checkPair holds one pair of strategies to the definition, and says whether
// any of its calls dropped a block.
func checkPair(t *testing.T, s core.Attender, plan *core.PositionPlan, want *scores) (sparse bool, notes []string) {
	t.Helper()
	tokens := len(want.text.value[0])
	for _, cut := range []struct {
		name        string
		first, last int
	}{{"prefill", 0, tokens}, {"chunk", 2 * tokens / 5, tokens}, {"decode", tokens - 1, tokens}} {
		r := want.text.request(plan, cut.first, cut.last)
		r.Params, r.WantMask = choose(sparser, s.(core.Strategy).Info()), true
		if s.(core.Strategy).Info().Name == "custom" {
			r.Mask = randomMask(r)
		}
		response, err := s.Attend(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		sparse, notes = sparse || response.Mask != nil, append(notes, response.Report.Notes...)
		lse, _ := r.LSE.Float32s()
		for head := range heads {
			for i := cut.first; i < cut.last; i++ {
				out, sum := want.attend(head, i, cut.last-cut.first, keptBy(response.Mask, head, i))
				got := append(request.Row(r.Output, 0, head, i-cut.first), float64(lse[head*(cut.last-cut.first)+i-cut.first]))
				for c, w := range append(out, sum) {
					if !(math.Abs(w-got[c]) <= tolerance) {
						t.Fatalf("%s: head %d, query %d, column %d (the last is the lse): %g, want %g", cut.name, head, i, c, got[c], w)
					}
				}
			}
		}
	}
	return sparse, notes
}

// keptBy says which keys query i attends to under a mask; nil: all.
func keptBy(mask *core.BlockMask, head, i int) func(j int) bool {
	if mask == nil {
		return func(int) bool { return true }
	}
	row := mask.Row(0, head, i/mask.BlockSize-mask.Sequences[0].FirstQueryBlock)
	return func(j int) bool { return slices.Contains(row, int32(j/mask.BlockSize)) }
}

func randomMask(r *core.AttentionRequest) *core.BlockMask {
	random := rand.New(rand.NewPCG(5, 0))
	extents := r.BlockExtents(block)
	mask := core.NewBlockMask(block, heads, extents)
	for _, extent := range extents {
		for range heads {
			for i := range extent.QueryBlocks {
				var row []int32
				at := extent.FirstQueryBlock + i
				for j := range at + 1 {
					if j == 0 || j == at || random.IntN(2) == 0 {
						row = append(row, int32(j))
					}
				}
				mask.Append(row)
			}
		}
	}
	return mask
}

// text is a sequence before any rotation: [head][token][dim].
type text struct{ query, key, value [][][]float64 }

func newText(seed uint64, tokens int) *text {
	random := rand.New(rand.NewPCG(seed, 1))
	rows := func(count int) [][][]float64 {
		made := make([][][]float64, count)
		for h := range made {
			made[h] = make([][]float64, tokens)
			for i := range made[h] {
				made[h][i] = make([]float64, headDim)
				for c := range made[h][i] {
					made[h][i][c] = random.NormFloat64()
				}
			}
		}
		return made
	}
	made := &text{rows(heads), rows(kvHeads), rows(kvHeads)}
	for h := range made.key { // a few keys draw much of the attention, as in real models
		for i := 0; i < tokens; i += 31 {
			for c := range made.key[h][i] {
				made.key[h][i][c] *= 3
			}
		}
	}
	return made
}

func rotated(row, frequencies []float64, p float64) []float64 {
	made := slices.Clone(row)
	half := len(frequencies)
	for f, frequency := range frequencies {
		sin, cos := math.Sincos(frequency * p)
		made[f], made[half+f] = row[f]*cos-row[half+f]*sin, row[half+f]*cos+row[f]*sin
	}
	return made
}

// request hands over queries [first, last) and keys [0, last), rotated at their
// true positions as a model does.
func (x *text) request(plan *core.PositionPlan, first, last int) *core.AttentionRequest {
	r := &core.AttentionRequest{Causal: true, Layer: 0, QueryOffset: []int64{int64(first)}, Position: plan}
	give := func(rows [][][]float64, first int, turn bool) *tensor.Tensor {
		made := request.Make(tensor.Float32, 1, len(rows), last-first, headDim)
		request.Fill(made, func(at [4]int) float64 {
			row := rows[at[1]][first+at[2]]
			if turn {
				row = rotated(row, plan.AppliedInvFreq, float64(first+at[2]))
			}
			return row[at[3]]
		})
		return made
	}
	r.Query, r.Key, r.Value = give(x.query, first, true), give(x.key, 0, true), give(x.value, 0, false)
	request.Outputs(r)
	return r
}

// scores is the table [head][query][key] of a plan.
type scores struct {
	text  *text
	of    [][][]float64
	twice int         // the distance whose pairs count twice; 0: none
	again [][]float64 // [head][query] the score of that pair at its true distance
}

func newScores(x *text, plan *core.PositionPlan) *scores {
	made := &scores{text: x, of: make([][][]float64, heads), twice: int(plan.Twice), again: make([][]float64, heads)}
	tokens := len(x.value[0])
	for h := range made.of {
		score := func(i, j int, distance float64) (sum float64) {
			for c, q := range rotated(x.query[h][i], plan.InvFreq, distance) {
				sum += q * x.key[h/(heads/kvHeads)][j][c]
			}
			return sum * plan.AttentionScale * plan.AttentionScale / math.Sqrt(headDim)
		}
		made.of[h], made.again[h] = make([][]float64, tokens), make([]float64, tokens)
		for i := range made.of[h] {
			made.of[h][i] = make([]float64, i+1)
			for j := range made.of[h][i] {
				made.of[h][i][j] = score(i, j, plan.Relative(int64(i), int64(j)))
			}
			if made.twice > 0 && i >= made.twice {
				made.again[h][i] = score(i, i-made.twice, float64(made.twice))
			}
		}
	}
	return made
}

// attend is softmax attention of one query among so many rows over the keys that
// are kept, and its log-sum-exp.
func (s *scores) attend(head, i, rows int, kept func(j int) bool) (out []float64, lse float64) {
	var keys []int
	var logits []float64
	for j, score := range s.of[head][i] {
		if kept(j) {
			keys, logits = append(keys, j), append(logits, score)
		}
	}
	if j := i - s.twice; s.twice > 0 && rows > 1 && j >= 0 && kept(j) {
		keys, logits = append(keys, j), append(logits, s.again[head][i])
	}
	top, sum := slices.Max(logits), 0.0
	out = make([]float64, headDim)
	for n, j := range keys {
		w := math.Exp(logits[n] - top)
		sum += w
		for c, v := range s.text.value[head/(heads/kvHeads)][j] {
			out[c] += w * v
		}
	}
	for c := range out {
		out[c] /= sum
	}
	return out, top + math.Log(sum)
}
