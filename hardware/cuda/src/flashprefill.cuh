// What the score kernels of FlashPrefill share: the means as operands, and what becomes of their products.
#pragma once
#include "select.cuh"

constexpr int kSteps = HEAD_DIM / 16;

__device__ __forceinline__ int padded_blocks(const SelectArgs& a) { return (a.k_blocks + kTile - 1) / kTile * kTile; }

// 16 means of a warp as operand fragments: rounded to 16 bits, and what that lost.
struct Means {
  u32 high[kSteps][4], low[kSteps][4];

  __device__ __forceinline__ void load(const SelectArgs& a, int kv_slot, int column0) {
    const int lane = threadIdx.x & 31;
    const u32* means = (const u32*)a.pooled + ((long long)kv_slot * padded_blocks(a) + column0 + lane / 4) * (HEAD_DIM / 2) + (lane & 3);
    const long long all = (long long)a.batch * a.kv_heads * padded_blocks(a) * (HEAD_DIM / 2);
#pragma unroll
    for (int kk = 0; kk < kSteps; ++kk)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const long long at = (j & 1) * 8 * (HEAD_DIM / 2) + kk * 8 + (j >> 1) * 4;
        high[kk][j] = means[at];
        low[kk][j] = means[all + at];
      }
  }
};

// Log-sum-exp over the 128 queries of query block i, for the thread's two key blocks. s: 16 means x 128 queries of a warp.
__device__ __forceinline__ void store_scores(const SelectArgs& a, float (&s)[64], int i, int head, int column0, float scale_log2) {
  const int lane = threadIdx.x & 31, position = a.first_block + i;
  const int first = position * kTile - a.q_offset;  // query row of the tile's row 0
  if (a.softcap > 0.0f) {
    const float most = a.softcap / a.scale, in = 2.0f * 1.44269504f / most;
#pragma unroll
    for (int x = 0; x < 64; ++x) s[x] = most * (1.0f - __fdividef(2.0f, exp2_approx(s[x] * in) + 1.0f));
  }
  if (first < 0 || first + kTile > a.q_len) {
#pragma unroll
    for (int x = 0; x < 64; ++x) {
      const int r = first + (x / 4) * 8 + 2 * (lane & 3) + (x & 1);
      if (r < 0 || r >= a.q_len) s[x] = NEG_INF;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float tops[2] = {NEG_INF, NEG_INF}, sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int x = 0; x < 16; ++x) tops[x & 1] = fmaxf(tops[x & 1], fmaxf(s[4 * x + 2 * r], s[4 * x + 2 * r + 1]));
    float top = fmaxf(tops[0], tops[1]);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * scale_log2;
#pragma unroll
    for (int x = 0; x < 16; ++x)
#pragma unroll
      for (int e = 0; e < 2; ++e) sums[e] += exp2_approx(__fmaf_rn(s[4 * x + 2 * r + e], scale_log2, -top));
    float sum = sums[0] + sums[1];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int column = column0 + lane / 4 + 8 * r;
    if ((lane & 3) == 0 && column < min(position, a.k_blocks))
      a.scores[((long long)head * a.q_blocks + i) * a.k_blocks + column] = top + log2_approx(sum);
  }
}
