// Tiles of 128 rows x head_dim in shared memory, as TMA writes them: halves of 64 elements, 128-byte swizzle.
#pragma once
#include "hopper.cuh"

constexpr int kHalfBytes = kTile * 128;  // one TMA box: 128 rows of 64 elements
constexpr int kHalves = HEAD_DIM / 64;
constexpr int kTileBytes = kHalves * kHalfBytes;

__device__ __forceinline__ void copy_tile(u32 dst, const TensorMap* map, u32 bar, int row, int head, int batch) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h) tma_load(dst + h * kHalfBytes, map, bar, h * 64, row, head, batch);
}

// S = Q K^T of one warpgroup: 64 rows x 128 keys.
__device__ __forceinline__ void product_qk(float (&s)[64], const u32 (&q)[kHalves * 4][4], u32 k) {
  const u64 kd = descriptor(k, 16);
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk)
    wgmma_rs<0>(s, q[kk], advance(kd, (kk / 4) * kHalfBytes + (kk % 4) * 32), kk > 0);
}

// Where this lane reads, or writes, its part of 16 columns of the query rows of its warp.
__device__ __forceinline__ u32 query_part(u32 warp_rows, int kk) {
  const int lane = threadIdx.x & 31, row = (lane & 7) + ((lane >> 3) & 1) * 8, chunk = 2 * (kk % 4) + (lane >> 4);
  return warp_rows + (kk / 4) * kHalfBytes + row * 128 + ((chunk ^ (row & 7)) * 16);
}

// The query rows of this warp as operand fragments.
__device__ __forceinline__ void load_query(u32 (&q)[kHalves * 4][4], u32 warp_rows) {
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk) ldmatrix_x4(query_part(warp_rows, kk), q[kk]);
}
