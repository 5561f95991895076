package oracle

import (
	"context"
	"math"

	"github.com/trivium-ml/trivium/hardware"
)

// differences are d of the contract: of sources, rounded to float32.
func differences(d hardware.Differences) (deltas [][]float64, base []float64, nonFinite []int64, err error) {
	operands := d.In
	if d.Base != nil {
		operands = append(d.In[:len(d.In):len(d.In)], *d.Base)
	}
	nonFinite = make([]int64, len(operands))
	for k, v := range operands {
		x, err := widen(v)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, f := range x {
			if math.IsNaN(f) || math.IsInf(f, 0) {
				nonFinite[k]++
			}
		}
		deltas = append(deltas, x)
	}
	if d.Base == nil {
		return deltas, nil, nonFinite, nil
	}
	base = deltas[len(d.In)]
	deltas = deltas[:len(d.In)]
	for _, x := range deltas {
		for i := range x {
			x[i] = float64(float32(x[i]) - float32(base[i]))
		}
	}
	return deltas, base, nonFinite, nil
}

// Products multiplies and adds in float64, in the order of elements.
func (Backend) Products(ctx context.Context, d hardware.Differences, product []float64) ([]int64, error) {
	x, _, nonFinite, err := differences(d)
	if err != nil {
		return nil, err
	}
	for a := range x {
		for b := range x {
			for i := range x[a] {
				product[a*len(x)+b] += x[a][i] * x[b][i]
			}
		}
	}
	return nonFinite, ctx.Err()
}

// Magnitudes counts one by one.
func (Backend) Magnitudes(ctx context.Context, d hardware.Differences, walks []hardware.Walk) ([]int64, error) {
	x, _, nonFinite, err := differences(d)
	if err != nil {
		return nil, err
	}
	for _, w := range walks {
		for _, f := range x[w.Source] {
			bits := min(math.Float32bits(float32(math.Abs(f))), 0x7fc00000)
			if uint64(bits)>>w.Known == uint64(w.Prefix)>>w.Known {
				w.Counts[bits>>w.Shift&uint32(len(w.Counts)-1)]++
			}
		}
	}
	return nonFinite, ctx.Err()
}

// Sparse follows the contract element by element.
func (Backend) Sparse(ctx context.Context, out hardware.Vector, d hardware.Differences, s *hardware.SparseSum) ([]int64, error) {
	x, base, nonFinite, err := differences(d)
	if err != nil {
		return nil, err
	}
	result := make([]float64, len(base))
	for i := range base {
		kept, elected := make([]float64, len(x)), 0.0
		for k := range x {
			size := float32(math.Abs(x[k][i]))
			if size >= s.Low[k] && size < s.High[k] && draw(s.Seed, k, s.Element+int64(i)) < s.Density {
				kept[k] = s.Factor * s.Weights[k] * x[k][i]
			}
			elected += kept[k]
		}
		sum, weight := 0.0, 0.0
		for k, term := range kept {
			if term == 0 || s.Consensus && (term > 0) != (elected >= 0) {
				continue
			}
			sum, weight = sum+term, weight+s.Weights[k]
		}
		if s.Normalise && weight != 0 {
			sum /= weight
		}
		result[i] = base[i] + s.Scale*sum
	}
	if err := store(out, result); err != nil {
		return nil, err
	}
	return nonFinite, ctx.Err()
}

// draw is in [0, 1).
func draw(seed uint64, source int, element int64) float64 {
	return float64(mix(seed+mix(uint64(source)<<48+uint64(element)))>>11) / (1 << 53)
}

// mix is the finaliser of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
