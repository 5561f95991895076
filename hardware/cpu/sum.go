package cpu

// #include "support.h"
import "C"

import (
	"context"
	"fmt"
	"unsafe"

	"github.com/trivium-ml/trivium/hardware"
)

// vectorDtypes are the C names of hardware's element types, by number.
var vectorDtypes = [...]C.int32_t{
	hardware.VectorFloat32:    C.TRIVIUM_FLOAT32,
	hardware.VectorBFloat16:   C.TRIVIUM_BFLOAT16,
	hardware.VectorFloat16:    C.TRIVIUM_FLOAT16,
	hardware.VectorFloat64:    C.TRIVIUM_FLOAT64,
	hardware.VectorFloat8E4M3: C.TRIVIUM_FLOAT8_E4M3,
	hardware.VectorFloat8E5M2: C.TRIVIUM_FLOAT8_E5M2,
}

func (b *backend) WeightedSum(ctx context.Context, out, in []hardware.Vector, weights [][]float64, wide bool, threads int) ([]int64, error) {
	if err := checkSum(out, in, weights); err != nil {
		return nil, err
	}
	s := &session{request: &hardware.Problem{}}
	defer s.Close()
	sum, err := s.describeSum(out, in, weights, wide)
	if err != nil {
		return nil, err
	}
	length := in[0].Len
	tiles := int((length + C.TRIVIUM_SUM_TILE - 1) / C.TRIVIUM_SUM_TILE)
	workers := threadCount(threads, tiles)
	scratch := make([]unsafe.Pointer, workers)
	counts := make([][]int64, workers)
	calls := make([]C.trivium_sum, workers)
	for w := range workers {
		if scratch[w], err = s.memory.alloc(b.summing.sum_bytes); err != nil {
			return nil, err
		}
		if counts[w], err = array[int64](&s.memory, len(in)); err != nil {
			return nil, err
		}
		calls[w] = sum
		calls[w].nonfinite = (*C.int64_t)(&counts[w][0])
	}
	err = forEach(ctx, workers, tiles, func(worker, i int) {
		first := int64(i) * C.TRIVIUM_SUM_TILE
		calls[worker].first, calls[worker].count = C.int64_t(first), C.int64_t(min(C.TRIVIUM_SUM_TILE, length-first))
		C.trivium_run_sum(b.summing, &calls[worker], scratch[worker])
	})
	if err != nil {
		return nil, err
	}
	nonfinite := make([]int64, len(in))
	for _, list := range counts {
		for i, n := range list {
			nonfinite[i] += n
		}
	}
	return nonfinite, nil
}

func (s *session) describeSum(out, in []hardware.Vector, weights [][]float64, wide bool) (C.trivium_sum, error) {
	sum := C.trivium_sum{candidates: C.int32_t(len(out)), sources: C.int32_t(len(in)), wide: flagOf(wide)}
	pointers, err := array[unsafe.Pointer](&s.memory, len(in)+len(out))
	if err != nil {
		return sum, err
	}
	dtypes, err := array[C.int32_t](&s.memory, len(in)+len(out))
	if err != nil {
		return sum, err
	}
	flat, err := array[float64](&s.memory, len(in)*len(out))
	if err != nil {
		return sum, err
	}
	for i, v := range append(in[:len(in):len(in)], out...) {
		if v.Data != nil {
			s.pinned.Pin(v.Data)
		}
		pointers[i], dtypes[i] = v.Data, vectorDtypes[v.Dtype]
	}
	for c, list := range weights {
		copy(flat[c*len(in):], list)
	}
	sum.in, sum.out = &pointers[0], &pointers[len(in)]
	sum.in_dtype, sum.out_dtype = &dtypes[0], &dtypes[len(in)]
	sum.weight = (*C.double)(&flat[0])
	return sum, nil
}

func checkSum(out, in []hardware.Vector, weights [][]float64) error {
	if len(in) == 0 || len(out) == 0 || len(weights) != len(out) {
		return fmt.Errorf("cpu: %d sources, %d results, %d lists of weights: want at least one, and as many lists as results", len(in), len(out), len(weights))
	}
	for c, list := range weights {
		if len(list) != len(in) {
			return fmt.Errorf("cpu: %d weights for candidate %d: want one for each of %d sources", len(list), c, len(in))
		}
	}
	for i, v := range append(in[:len(in):len(in)], out...) {
		if v.Len != in[0].Len || int(v.Dtype) >= len(vectorDtypes) || (v.Data == nil && v.Len > 0) {
			return fmt.Errorf("cpu: vector %d (sources, then results) has %d elements of dtype %d: want %d of a known dtype", i, v.Len, v.Dtype, in[0].Len)
		}
	}
	return nil
}
