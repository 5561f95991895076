// A mask from rows of bits: row counts to row starts, words to columns.
#pragma once
#include "grid.cuh"

// Turns the counts in row_ptr[1 .. rows] into starts. One block of 1024 threads.
__device__ __forceinline__ void prefix_rows(int* row_ptr, int rows) {
  __shared__ int warp_sums[32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  int carry = 0;
  if (threadIdx.x == 0) row_ptr[0] = 0;
  for (int base = 0; base < rows; base += 4096) {
    int x[4];
    const int at = base + 4 * (int)threadIdx.x;
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = at + j < rows ? __ldcg(row_ptr + at + j + 1) : 0;
    x[1] += x[0];
    x[2] += x[1];
    x[3] += x[2];
    int sum = x[3];
    for (int o = 1; o < 32; o <<= 1) {
      const int y = __shfl_up_sync(~0u, sum, o);
      if (lane >= o) sum += y;
    }
    __syncthreads();
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int before = carry + sum - x[3], all = 0;
    for (int w = 0; w < 32; ++w) {
      if (w < warp) before += warp_sums[w];
      all += warp_sums[w];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (at + j < rows) row_ptr[at + j + 1] = before + x[j];
    carry += all;
  }
}

// Stores the columns of the lanes' words, word by word, from cols[at] on; returns where the next go. column: of bit 0.
__device__ __forceinline__ int store_columns(u32 word, int column, int* cols, int at) {
  const int lane = threadIdx.x & 31, mine = __popc(word);
  int sum = mine;
  for (int o = 1; o < 32; o <<= 1) {
    const int y = __shfl_up_sync(~0u, sum, o);
    if (lane >= o) sum += y;
  }
  for (int to = at + sum - mine; word; word &= word - 1) cols[to++] = column + __ffs(word) - 1;
  return at + __shfl_sync(~0u, sum, 31);
}
