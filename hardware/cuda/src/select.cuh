// What the selectors share: what a query block sees, and the largest values of a row.
#pragma once
#include "csr.cuh"
#include "select_args.h"

// Key blocks [low, high) that query block `position` (from position 0) may see.
__device__ __forceinline__ int2 visible_blocks(const SelectArgs& a, int position) {
  const int high = min(a.k_blocks, position + 1);
  const int low = a.window > 0 ? max(0, position * kTile - a.window + 1) / kTile : 0;
  return make_int2(min(low, high), high);
}

// Writes a row of the mask from keep(j), called by the whole warp with j = 32 w + lane, and its count.
template <typename Keep> __device__ __forceinline__ void write_row(const SelectArgs& a, int row, int end, const Keep& keep) {
  const int lane = threadIdx.x & 31;
  u32* bits = a.bits + (long long)row * a.words;
  int count = 0;
  for (int w = 0; w < a.words; ++w) {
    const u32 word = 32 * w < end ? __ballot_sync(~0u, keep(32 * w + lane)) : 0;
    if (lane == 0) bits[w] = word;
    count += __popc(word);
  }
  if (lane == 0) a.row_ptr[row + 1] = count;
}

__device__ __forceinline__ double warp_sum(double x) {
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
