package oracle

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/trivium-ml/trivium/hardware"
)

// wideDifferences are those of sources in float64, of numbers rounded to float32.
func wideDifferences(d hardware.Differences) (deltas [][]float64, base []float64, nonFinite []int64, err error) {
	whole, _, nonFinite, err := differences(hardware.Differences{In: append(d.In[:len(d.In):len(d.In)], *d.Base)})
	if err != nil {
		return nil, nil, nil, err
	}
	for _, x := range whole {
		for i := range x {
			x[i] = float64(float32(x[i]) + 0) // no -0
		}
	}
	deltas, base = whole[:len(d.In)], whole[len(d.In)]
	for _, x := range deltas {
		for i := range x {
			x[i] -= base[i]
		}
	}
	return deltas, base, nonFinite, nil
}

// storeRounded rounds to float32 before the dtype. NaN has no sign.
func storeRounded(out hardware.Vector, result []float64) error {
	for i, x := range result {
		result[i] = float64(float32(x) + 0)
		if math.IsNaN(x) {
			result[i] = math.NaN()
		}
	}
	return store(out, result)
}

// Ranked sorts each row, and then follows the contract element by element.
func (Backend) Ranked(ctx context.Context, out hardware.Vector, d hardware.Differences, r *hardware.RankedSum) ([]int64, error) {
	x, base, nonFinite, err := wideDifferences(d)
	if err != nil {
		return nil, err
	}
	for s := range x {
		for first := 0; first < len(base); first += len(r.Chance) {
			for rank, i := range bySize(x[s], first, first+len(r.Chance)) {
				kept := 0.0
				if draw(r.Seed, s, r.Element+int64(i)) < r.Chance[rank] {
					kept = x[s][i] / r.Chance[rank]
				}
				x[s][i] = float64(r.Weights[s] * kept) // the conversion: rounded before it is added
			}
		}
	}
	result := make([]float64, len(base))
	for i := range base {
		elected, sum, weight := 0.0, 0.0, 0.0
		for s := range x {
			elected += x[s][i]
		}
		for s := range x {
			if k := x[s][i]; k != 0 && (!r.Consensus || (k > 0) == (elected >= 0)) {
				sum, weight = sum+k, weight+r.Weights[s]
			}
		}
		if r.Normalise && weight != 0 {
			sum /= weight
		}
		result[i] = base[i] + float64(r.Scale*sum)
	}
	if err := storeRounded(out, result); err != nil {
		return nil, err
	}
	return nonFinite, ctx.Err()
}

// bySize lists elements [first, last) from the smallest, equal ones by their place,
// NaN before all.
func bySize(x []float64, first, last int) []int {
	order := make([]int, last-first)
	for k := range order {
		order[k] = first + k
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(math.Abs(x[a]), math.Abs(x[b])) })
	return order
}

// Variances counts one by one.
func (Backend) Variances(ctx context.Context, d hardware.Differences, w hardware.Walk) ([]int64, error) {
	x, base, nonFinite, err := wideDifferences(d)
	if err != nil {
		return nil, err
	}
	for i := range base {
		bits := min(math.Float32bits(variance(x, i))&0x7fffffff, 0x7fc00000)
		if uint64(bits)>>w.Known == uint64(w.Prefix)>>w.Known {
			w.Counts[bits>>w.Shift&uint32(len(w.Counts)-1)]++
		}
	}
	return nonFinite, ctx.Err()
}

func variance(x [][]float64, i int) float32 {
	n, mean, squares := float64(len(x)), 0.0, 0.0
	for s := range x {
		mean += x[s][i] / n
	}
	for s := range x {
		d := x[s][i] - mean
		squares += d * d / n
	}
	return float32(squares)
}

// Squares adds one by one.
func (Backend) Squares(ctx context.Context, d hardware.Differences, limit float32, sum []float64) ([]int64, error) {
	x, base, nonFinite, err := wideDifferences(d)
	if err != nil {
		return nil, err
	}
	for i := range base {
		if variance(x, i) < limit {
			continue
		}
		for s := range x {
			sum[s] += float64(x[s][i] * x[s][i])
		}
	}
	return nonFinite, ctx.Err()
}

// Majority follows the contract element by element.
func (Backend) Majority(ctx context.Context, out hardware.Vector, d hardware.Differences, limit float32, weights []float64) ([]int64, error) {
	x, base, nonFinite, err := wideDifferences(d)
	if err != nil {
		return nil, err
	}
	result := make([]float64, len(base))
	for i := range base {
		all, sum, weight := 0.0, 0.0, 0.0
		for s := range x {
			all += x[s][i]
		}
		for s, w := range weights {
			if d := x[s][i]; d != 0 && (d > 0) == (all >= 0) {
				sum, weight = sum+float64(w*d), weight+w
			}
		}
		result[i] = base[i]
		if variance(x, i) >= limit && weight != 0 {
			result[i] += sum / weight
		}
	}
	if err := storeRounded(out, result); err != nil {
		return nil, err
	}
	return nonFinite, ctx.Err()
}
