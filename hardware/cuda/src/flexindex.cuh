// What the kernels of the FlexPrefill index share: arguments, input loads, and the decision per head.
#pragma once

#include "hopper.cuh"
#include "grid.cuh"
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

// A score through the softcap.
__device__ __forceinline__ float capped(const IndexArgs& a, float x) { return a.softcap > 0.0f ? a.softcap * tanhf(x / a.softcap) : x; }

// The first key block that query block i, counted from position 0, may see.
__device__ __forceinline__ int first_visible(const IndexArgs& a, int i) { return a.window > 0 ? max(0, i * a.block - a.window + 1) / a.block : 0; }

// The position in the middle of the tokens of a block, those of [begin, end).
__device__ __forceinline__ int middle_of(const IndexArgs& a, int block, int begin, int end) {
  return (max(begin, block * a.block) + min(end, (block + 1) * a.block) - 1) / 2;
}

// Pools the mass of the keys, estimates the same from the mean probe, and compares the two distributions. 256 threads.
// parts: both come as partial sums of tiles; otherwise from `vertical` and from the pooled keys.
template <bool parts>
__device__ __forceinline__ void decide_head(const IndexArgs& a, int head, float* scratch /* 34 + 2 d floats */) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  float* v_pool = a.v_pool + (long long)head * a.blocks;
  float* estimate = a.estimate + (long long)head * a.blocks;
  const int low = first_visible(a, a.blocks - 1);
  float top = NEG_INF;
  if (parts) {
    const float4* e = (const float4*)(a.estimate_part + (long long)head * a.blocks * kParts);
    const float4* v = (const float4*)(a.v_part + (long long)head * a.blocks * kParts);
#pragma unroll 4
    for (int j = threadIdx.x; j < a.blocks; j += blockDim.x) {
      const float4 e0 = __ldcg(e + 2 * j), e1 = __ldcg(e + 2 * j + 1), v0 = __ldcg(v + 2 * j), v1 = __ldcg(v + 2 * j + 1);
      const float x = (((e0.x + e0.y) + (e0.z + e0.w)) + ((e1.x + e1.y) + (e1.z + e1.w))) * a.scale /
                      ((float)a.block * min(a.block, a.n - j * a.block));
      v_pool[j] = (((v0.x + v0.y) + (v0.z + v0.w)) + ((v1.x + v1.y) + (v1.z + v1.w))) / a.block;
      estimate[j] = j < low ? NEG_INF : capped(a, x);
      top = fmaxf(top, estimate[j]);
    }
    for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  } else {
    const float* vertical = a.vertical + (long long)head * a.n;
    const int batch = head / a.q_heads, q_head = head % a.q_heads;
    const float* k_mean = a.k_mean + (long long)(batch * a.kv_heads + kv_head_of(a, q_head)) * a.blocks * a.d;
    float* mean = scratch + 34;  // and of the second rotation
    for (int band = 0; band < (a.q2 ? 2 : 1); ++band) {
      const void* q = band ? a.q2 : a.q;
      const long long base = band ? batch * a.q2_batch + q_head * a.q2_head : batch * a.q_batch + q_head * a.q_head, stride = band ? a.q2_row : a.q_row;
      for (int i = threadIdx.x; i < a.d / 2; i += blockDim.x) {
        float2 sum = make_float2(0.0f, 0.0f);
        for (int r = a.n - a.block; r < a.n; ++r) {
          const float2 x = load_pair(q, base + (long long)(r - a.q_offset) * stride + 2 * i);
          sum.x += x.x;
          sum.y += x.y;
        }
        mean[band * a.d + 2 * i] = sum.x;
        mean[band * a.d + 2 * i + 1] = sum.y;
      }
    }
    __syncthreads();
    const int middle = (2 * a.n - a.block - 1) / 2;
    for (int j = warp; j < a.blocks; j += warps) {
      const float* from = a.q2 && middle - middle_of(a, j, 0, a.n) >= a.band ? mean + a.d : mean;
      float x = 0.0f, v = 0.0f;
      for (int i = lane; i < a.d; i += 32) x += from[i] * k_mean[(long long)j * a.d + i];
      for (int i = lane; i < a.block && j * a.block + i < a.n; i += 32) v += __ldcg(vertical + j * a.block + i);
      for (int o = 16; o; o >>= 1) {
        x += __shfl_xor_sync(~0u, x, o);
        v += __shfl_xor_sync(~0u, v, o);
      }
      x = j < low ? NEG_INF : capped(a, x * a.scale / a.block);
      if (lane == 0) { estimate[j] = x; v_pool[j] = v; }
      top = fmaxf(top, x);
    }
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
    a.aware[head] = js < a.tau[head % a.q_heads];
  }
}
