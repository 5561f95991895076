package attention_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/strategies/attention/kernel"
	"github.com/trivium-ml/trivium/strategies/internal/backends"
	"github.com/trivium-ml/trivium/strategies/internal/request"
)

// drawn is a prompt of random length and everything that may surround it.
type drawn struct {
	random      *rand.Rand
	tokens      int
	left, right int // padding
	whole       *core.AttentionRequest
}

func draw(seed uint64, params core.Params) *drawn {
	d := &drawn{random: rand.New(rand.NewPCG(seed, 9))}
	d.tokens = 700 + d.random.IntN(900)
	d.left, d.right = 1+d.random.IntN(90), 1+d.random.IntN(90)
	d.whole = request.Random(seed, request.Shape{Batch: 1, Heads: 4, KVHeads: 2, Queries: d.tokens, Keys: d.tokens, Dim: 16})
	d.whole.Params, d.whole.Layer = params, 0
	return d
}

// surround puts the prompt behind left and before right rows of another.
func (d *drawn) surround(t *tensor.Tensor, left, right int) *tensor.Tensor {
	out := request.Make(t.Dtype(), t.Dim(0), t.Dim(1), left+t.Dim(2)+right, t.Dim(3))
	request.Fill(out, func([4]int) float64 { return 3 * d.random.NormFloat64() })
	inside, _ := out.Narrow(2, left, t.Dim(2))
	request.Fill(inside, func(at [4]int) float64 { return request.Row(t, at[0], at[1], at[2])[at[3]] })
	return out
}

func (d *drawn) surrounded(left, right int) *core.AttentionRequest {
	r := *d.whole
	r.Query, r.Key, r.Value = d.surround(r.Query, left, right), d.surround(r.Key, left, right), d.surround(r.Value, left, right)
	request.Outputs(&r)
	return &r
}

func (d *drawn) padded(left, right int) *core.AttentionRequest {
	r := d.surrounded(left, right)
	r.KeyStart, r.KeyEnd = []int64{int64(left)}, []int64{int64(left + d.tokens)}
	return r
}

func (d *drawn) packed() *core.AttentionRequest {
	r := d.surrounded(d.left, d.right)
	r.QueryOffset, r.CuSeqlens = nil, []int64{0, int64(d.left), int64(d.left + d.tokens), int64(d.left + d.tokens + d.right)}
	return r
}

// cuts are chunk ends at multiples of step.
func (d *drawn) cuts(step int) []int {
	ends := []int{d.tokens}
	for range 1 + d.random.IntN(3) {
		ends = append(ends, step*(1+d.random.IntN(d.tokens/step)))
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	return ends[:slices.Index(ends, d.tokens)+1]
}

// The blocks of a prompt are its own: random lengths, in three random
// chunkings, padded left, right and on both sides, and packed.
func TestBlocksAreThoseOfThePrompt(t *testing.T) {
	const segment, block = 256, 32
	for _, c := range strategies {
		s := c.make(kernel.New(backends.Best(t)))
		rule := s.Info().Capabilities.ChunkRule
		params := core.Params{}
		for name, value := range c.params {
			params[name] = value
		}
		step := block
		if _, ok := s.Info().Parameter("segment"); ok { // it makes the rule "same"
			params["segment"], step, rule = int64(segment), segment, "same"
		}
		for seed := uint64(70); seed < 74; seed++ {
			t.Run(fmt.Sprintf("%s seed %d", c.name, seed), func(t *testing.T) {
				d := draw(seed, params)
				want := choose(t, s, d.whole)
				for range 3 {
					ends := d.cuts(step)
					t.Logf("%d tokens in chunks to %v", d.tokens, ends)
					checkChunks(t, s, d.whole, ends, rule, want)
				}
				for name, r := range map[string]*core.AttentionRequest{
					"left": d.padded(d.left, 0), "right": d.padded(0, d.right), "both": d.padded(d.left, d.right), "packed": d.packed(),
				} {
					sequence := 0
					if name == "packed" {
						sequence = 1
					}
					got := choose(t, s, r)
					if (got == nil) != (want == nil) || got != nil && !sameRows(want, 0, got, sequence) {
						t.Errorf("%s, %d tokens with %d before and %d behind: other blocks than alone", name, d.tokens, d.left, d.right)
					}
				}
			})
		}
	}
}
