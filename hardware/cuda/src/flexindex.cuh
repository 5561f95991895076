// What the kernels of the FlexPrefill index share: arguments, input loads, and the decision per head.
#pragma once

#include "hopper.cuh"
#include "flexindex_args.h"

__device__ __forceinline__ int kv_head_of(const IndexArgs& a, int q_head) {
  return a.interleave ? q_head % a.kv_heads : q_head / (a.q_heads / a.kv_heads);
}

// Two neighbouring elements as floats.
__device__ __forceinline__ float2 load_pair(const void* base, long long index) {
#ifdef FLOAT_INPUT
  return ((const float2*)base)[index >> 1];
#else
  const u32 x = ((const u32*)base)[index >> 1];
  return make_float2(unpack_lo(x), unpack_hi(x));
#endif
}

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

// Pools vertical and slash, estimates the block distribution from the mean probe, and compares the two. 256 threads.
__device__ __forceinline__ void decide_head(const IndexArgs& a, int head, float* scratch /* 34 + d floats */) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const float* vertical = a.vertical + (long long)head * a.n;
  const float* slash = a.slash + (long long)head * a.n;
  float* v_pool = a.v_pool + (long long)head * a.blocks;
  float* s_pool = a.s_pool + (long long)head * a.blocks;
  for (int j = warp; j < a.blocks; j += warps) {
    float v = 0.0f, s = 0.0f;
    for (int i = lane; i < a.block; i += 32) {
      const int key = j * a.block + i;
      if (key < a.n) v += __ldcg(vertical + key);
      // Released: distances are pooled in blocks that start at the largest one.
      const int distance = a.rule ? key : a.n - 1 - ((a.blocks - 1 - j) * a.block + i);
      if (distance >= 0 && distance < a.n) s += __ldcg(slash + distance);
    }
    for (int o = 16; o; o >>= 1) {
      v += __shfl_xor_sync(~0u, v, o);
      s += __shfl_xor_sync(~0u, s, o);
    }
    if (lane == 0) { v_pool[j] = v; s_pool[j] = s; }
  }
  // Mean of the last `block` queries.
  const int batch = head / a.q_heads, q_head = head % a.q_heads, pairs = a.d / 2;
  float* mean = scratch + 34;
  const long long q_base = batch * a.q_batch + q_head * a.q_head;
  for (int i = threadIdx.x; i < a.d; i += blockDim.x) mean[i] = 0.0f;
  __syncthreads();
  const int pair = threadIdx.x % pairs, groups = blockDim.x / pairs, group = threadIdx.x / pairs;
  float2 sum = make_float2(0.0f, 0.0f);
  if (group < groups)
    for (int r = group; r < a.block; r += groups) {
      const float2 x = load_pair(a.q, q_base + (long long)(a.n - a.block + r) * a.q_row + 2 * pair);
      sum.x += x.x;
      sum.y += x.y;
    }
  for (int g = 0; g < groups; ++g) {  // one group after the other: the order of the additions is fixed
    if (g == group) { mean[2 * pair] += sum.x; mean[2 * pair + 1] += sum.y; }
    __syncthreads();
  }
  const float* k_mean = a.k_mean + (long long)(batch * a.kv_heads + kv_head_of(a, q_head)) * a.blocks * a.d;
  float* estimate = a.estimate + (long long)head * a.blocks;
  float top = NEG_INF;
  for (int j = warp; j < a.blocks; j += warps) {
    float x = 0.0f;
    for (int i = lane; i < a.d; i += 32) x += mean[i] * __ldcg(k_mean + (long long)j * a.d + i);
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    x *= a.scale / a.block;
    if (lane == 0) estimate[j] = x;
    top = fmaxf(top, x);
  }
  // The maximum over the warps; warps without a block hold -inf.
  __syncthreads();
  if (lane == 0) scratch[warp] = top;
  __syncthreads();
  for (int w = 0; w < warps; ++w) top = fmaxf(top, scratch[w]);
  float total = 0.0f;
  for (int j = threadIdx.x; j < a.blocks; j += blockDim.x) total += expf(estimate[j] - top);
  total = block_sum(total, scratch);
  float divergence = 0.0f;
  for (int j = threadIdx.x; j < a.blocks; j += blockDim.x) {
    const float p = expf(estimate[j] - top) / total, v = v_pool[j], m = 0.5f * (p + v);
    // 0 log 0 is 0; the released code has NaN there, which is not below tau and makes the head vertical-slash.
    if (p > 0.0f || a.rule == 0) divergence += 0.5f * p * logf(p / m);
    if (v > 0.0f || a.rule == 0) divergence += 0.5f * v * logf(v / m);
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    const float js = divergence < 0.0f ? 0.0f : sqrtf(divergence);
    a.js[head] = js;
    a.aware[head] = js < a.tau;
  }
}
