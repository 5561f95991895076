// Writes up to 64 sequences, which travel in the launch, to device memory: no host copy, graph-capturable.
#include "hopper.cuh"
#include "table_args.h"

extern "C" __global__ void store_table(const __grid_constant__ TableArgs x) {
  if (threadIdx.x < x.count) x.table[threadIdx.x] = x.rows[threadIdx.x];
}
