package bound

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// populations are made to break bounds.
func populations(random *rand.Rand) map[string][]float64 {
	const n = 2000
	fill := func(value func(i int) float64) []float64 {
		p := make([]float64, n)
		for i := range p {
			p[i] = min(max(value(i), 0), 1)
		}
		return p
	}
	return map[string][]float64{
		"one bad row in a thousand": fill(func(i int) float64 { return float64(min(1, i%1000)) }),
		"two points, .93":           fill(func(i int) float64 { return float64(min(1, i%100/7)) }),
		"two points, .5":            fill(func(i int) float64 { return float64(i % 2) }),
		"near 1, skewed":            fill(func(int) float64 { return 1 - 0.07*random.ExpFloat64() }),
		"power of a uniform":        fill(func(int) float64 { return math.Pow(random.Float64(), 0.05) }),
		"a trend":                   fill(func(i int) float64 { return 1 - 0.2*float64(i)/n }),
		"the last tenth is lost":    fill(func(i int) float64 { return 1 - float64(i*10/n/9) }),
		"equal":                     fill(func(int) float64 { return 0.9 }),
		"uniform":                   fill(func(int) float64 { return random.Float64() }),
	}
}

func mean(x []float64) (m float64) {
	for _, v := range x {
		m += v / float64(len(x))
	}
	return m
}

// draw moves count values, drawn without replacement, to the front.
func draw(p []float64, count int, random *rand.Rand) []float64 {
	for i := range count {
		j := i + random.IntN(len(p)-i)
		p[i], p[j] = p[j], p[i]
	}
	return p[:count]
}

// The claim itself: over many draws the bound is above the mean in at most a
// share delta of them, and five standard deviations of that count. A mean less
// three standard errors does not pass: it is held to the same.
func TestLowerHolds(t *testing.T) {
	const draws, delta = 1000, 0.05
	allowed := int(delta*draws + 5*math.Sqrt(draws*delta*(1-delta)))
	normalFailed := false
	for name, p := range populations(rand.New(rand.NewPCG(1, 2))) {
		for _, count := range []int{1, 20, 128, 400} {
			random := rand.New(rand.NewPCG(3, uint64(count)))
			truth, wrong, normal := mean(p), 0, 0
			for range draws {
				x := draw(p, count, random)
				if Lower(x, len(p), delta) > truth+1e-12 {
					wrong++
				}
				m, squares := mean(x), 0.0
				for _, v := range x {
					squares += (v - m) * (v - m)
				}
				if m-3*math.Sqrt(squares)/float64(count) > truth+1e-12 {
					normal++
				}
			}
			if wrong > allowed {
				t.Errorf("%s, %d of %d: above the mean in %d of %d draws, want at most %d", name, count, len(p), wrong, draws, allowed)
			}
			normalFailed = normalFailed || count >= 128 && normal > allowed
		}
	}
	if !normalFailed {
		t.Error("a mean less three standard errors held everywhere: the populations test nothing")
	}
}

// Looking after every value and stopping at the best bound does not break it.
func TestLowerHoldsAtAnyTime(t *testing.T) {
	const draws, delta, count = 200, 0.1, 64
	allowed := int(delta*draws + 5*math.Sqrt(draws*delta*(1-delta)))
	for name, p := range populations(rand.New(rand.NewPCG(1, 2))) {
		random := rand.New(rand.NewPCG(5, 6))
		truth, wrong := mean(p), 0
		for range draws {
			x := draw(p, count, random)
			best := 0.0
			for n := range x {
				best = max(best, Lower(x[:n+1], len(p), delta))
			}
			if best > truth+1e-12 {
				wrong++
			}
		}
		if wrong > allowed {
			t.Errorf("%s: above the mean at some time in %d of %d draws, want at most %d", name, wrong, draws, allowed)
		}
	}
}

// Betting on the true mean is a fair game: over all orders of a population the
// capital is 1 on average, at every time.
func TestTheGameIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.Float64Range(0.01, 1), 2, 6).Draw(t, "population")
		sums, orders := make([]float64, len(p)), 0
		permute(p, 0, func() {
			capital, left := shares, mean(p)*float64(len(p))
			for i, v := range p {
				capital.bet(v, left/float64(len(p)-i))
				sums[i] += capital.worth()
				left -= v
			}
			orders++
		})
		for i, sum := range sums {
			if average := sum / float64(orders); math.Abs(average-1) > 1e-9 {
				t.Fatalf("capital after %d values is %g on average, want 1", i+1, average)
			}
		}
	})
}

func permute(p []float64, from int, visit func()) {
	if from == len(p) {
		visit()
		return
	}
	for i := from; i < len(p); i++ {
		p[from], p[i] = p[i], p[from]
		permute(p, from+1, visit)
		p[from], p[i] = p[i], p[from]
	}
}

func TestLowerIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float64Range(0, 1), 1, 80).Draw(t, "x")
		population := len(x) + rapid.IntRange(0, 500).Draw(t, "more")
		delta := rapid.Float64Range(1e-9, 0.5).Draw(t, "delta")
		lower := Lower(x, population, delta)
		if !(lower >= 0 && lower <= mean(x)+1e-12) {
			t.Fatalf("bound %g, want from 0 to the mean %g", lower, mean(x))
		}
		const resolution = 1e-6
		if surer := Lower(x, population, delta/3); surer > lower+resolution {
			t.Errorf("delta %g: bound %g; a third of it: %g", delta, lower, surer)
		}
		raised := slices.Clone(x)
		at := rapid.IntRange(0, len(x)-1).Draw(t, "at")
		raised[at] += (1 - raised[at]) * rapid.Float64Range(0, 1).Draw(t, "by")
		if higher := Lower(raised, population, delta); higher < lower-resolution {
			t.Errorf("value %d raised from %g to %g: bound falls from %g to %g", at, x[at], raised[at], lower, higher)
		}
	})
}

func TestLowerOfAllIsTheMean(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float64Range(0, 1), 1, 80).Draw(t, "x")
		if lower := Lower(x, len(x), 1e-3); math.Abs(lower-mean(x)) > 1e-12 {
			t.Fatalf("bound of all values %g, want their mean %g", lower, mean(x))
		}
	})
}

func TestLowerIsTight(t *testing.T) {
	ones := slices.Repeat([]float64{1}, 256)
	// Half of the capital grows by 1/m with each value.
	want := math.Pow(0.01*0.5, 1.0/256)
	if got := Lower(ones, 1<<40, 0.01); got < want || got > want+1e-3 {
		t.Errorf("256 ones: bound %g, want at least %g", got, want)
	}
	cases := []struct {
		name  string
		low   float64
		count int
		want  float64
	}{
		{"a deviation of .1", 0.83, 256, 0.907},
		{"a deviation of .1, more values", 0.83, 1024, 0.921},
		{"few values", 0.83, 64, 0.85},
	}
	for _, c := range cases {
		x := make([]float64, c.count) // .93 in the mean
		for i := range x {
			if x[i] = c.low; i%2 == 0 {
				x[i] = 1.86 - c.low
			}
			x[i] = min(x[i], 1)
		}
		if got := Lower(x, 8192, 0.01); got < c.want-(0.93-mean(x)) {
			t.Errorf("%s: bound %g of mean %g, want at least %g", c.name, got, mean(x), c.want)
		}
	}
	if got := Lower(nil, 10, 0.01); got != 0 {
		t.Errorf("no values: bound %g, want 0", got)
	}
	if got := Lower(make([]float64, 5), 10, 0.01); got != 0 {
		t.Errorf("zeros: bound %g, want 0", got)
	}
}

func TestLowerDoesNotAllocate(t *testing.T) {
	x := draw(populations(rand.New(rand.NewPCG(1, 2)))["near 1, skewed"], 256, rand.New(rand.NewPCG(3, 4)))
	if n := testing.AllocsPerRun(10, func() { Lower(x, 8192, 0.01) }); n != 0 {
		t.Errorf("%g allocations, want none", n)
	}
}

func BenchmarkLower(b *testing.B) {
	x := draw(populations(rand.New(rand.NewPCG(1, 2)))["near 1, skewed"], 256, rand.New(rand.NewPCG(3, 4)))
	for b.Loop() {
		Lower(x, 8192, 0.01)
	}
}
