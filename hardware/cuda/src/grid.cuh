// Sums over a block, and the last block of a grid.
#pragma once
#include "hopper.cuh"

__device__ __forceinline__ float block_sum(float x, float* scratch) {  // all threads get the sum; scratch holds 33 floats
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) {
    float y = threadIdx.x < blockDim.x / 32 ? scratch[threadIdx.x] : 0.0f;
    for (int o = 16; o; o >>= 1) y += __shfl_xor_sync(~0u, y, o);
    if (threadIdx.x == 0) scratch[32] = y;
  }
  __syncthreads();
  return scratch[32];
}

// True in every thread of the block that is the last of `total` to get here; leaves the counter zero for the next run.
__device__ __forceinline__ bool last_block(u32* counter, u32 total) {
  __shared__ u32 last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == total - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last != 0;
}
