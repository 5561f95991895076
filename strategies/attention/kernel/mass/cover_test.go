package mass

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func drawValues(t *rapid.T) []float32 {
	// Few distinct exponents and some equals, as in a softmax of alike keys.
	return rapid.SliceOfN(rapid.OneOf(
		rapid.Float32Range(0, 1), rapid.Float32Range(0, 1e-6), rapid.SampledFrom([]float32{0, 0.25, 1e-3}),
	), 1, 300).Draw(t, "values")
}

func TestCoverIsThatOfASort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := drawValues(t)
		target := rapid.Float64Range(0, 20).Draw(t, "target")
		sorted := slices.Clone(values)
		slices.Sort(sorted)
		slices.Reverse(sorted)
		want, sum := 0, 0.0
		for _, v := range sorted {
			if sum += float64(v); sum > target {
				break
			}
			want++
		}
		if got := Cover(values, target); got != want {
			t.Fatalf("%d values fit into %g, want %d", got, target, want)
		}
	})
}

func TestLargestIsThatOfASort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := drawValues(t)
		count := rapid.IntRange(0, len(values)).Draw(t, "count")
		order := make([]int, len(values))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			if values[a] > values[b] {
				return -1
			} else if values[a] < values[b] {
				return 1
			}
			return 0
		})
		want := slices.Sorted(slices.Values(order[:count]))
		if got := Largest(values, count); !slices.Equal(got, want) {
			t.Fatalf("largest %d: %v, want %v", count, got, want)
		}
	})
}

func TestFallingIsTheStableOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := append(drawValues(t), rapid.SliceOf(rapid.SampledFrom([]float32{-1, float32(math.Copysign(0, -1)), 0, float32(math.NaN()), float32(math.Inf(1))})).Draw(t, "odd")...)
		wide := make([]float64, len(values))
		for i, v := range values {
			wide[i] = float64(v)
		}
		if got, want := Falling(values), Order(wide); !slices.Equal(got, want) {
			t.Fatalf("order of %v: %v, want %v", values, got, want)
		}
	})
}

func BenchmarkCover(b *testing.B) {
	values := make([]float32, 128<<10)
	for i := range values {
		values[i] = 1 / float32(i*7919%len(values)+1)
	}
	for b.Loop() {
		Cover(values, 8)
	}
}
