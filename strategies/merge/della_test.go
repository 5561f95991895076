package merge

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivium-ml/trivium/strategies/merge/tile"
)

// The digits give the order that a stable sort by size does.
func TestRankingIsAStableSort(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	var ranks ranking
	for round := range 200 {
		n := 1 + r.IntN(3000)
		v := &tile.Values{Sources: [][]float32{make([]float32, n)}, Base: make([]float32, n)}
		for i := range n {
			v.Sources[0][i] = float32(r.NormFloat64() * math.Pow(2, float64(r.IntN(40)-20)))
			switch {
			case round%4 == 1: // many equal ones, zero among them
				v.Sources[0][i] = float32(r.IntN(9) - 4)
			case round%4 == 2 && r.IntN(50) == 0:
				v.Sources[0][i] = float32(math.NaN())
			case round%4 == 3 && r.IntN(50) == 0:
				v.Sources[0][i] = float32(math.Inf(1 - 2*r.IntN(2)))
			default:
				v.Base[i] = float32(r.NormFloat64())
			}
		}
		first := r.IntN(n)
		last := first + r.IntN(n-first) + 1
		want := make([]int32, last-first)
		for k := range want {
			want[k] = int32(first + k)
		}
		slices.SortStableFunc(want, func(a, b int32) int {
			return cmp.Compare(math.Abs(v.Delta(0, int(a))), math.Abs(v.Delta(0, int(b))))
		})
		if got := ranks.byMagnitude(v, 0, first, last); !slices.Equal(got, want) {
			t.Fatalf("round %d, elements %d to %d: another order", round, first, last)
		}
	}
}
