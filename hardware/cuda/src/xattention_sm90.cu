// The products of xattention.cuh for sm_90a: wgmma from shared memory, 128 x 256 squares, 64 x 256 a warpgroup, four stages
// of cp.async two steps ahead. Both sides are stored as the 128-byte swizzle of the descriptors; TMA cannot load them, since
// a prompt is not a whole number of squares.
// Versions (H100, whole selection at 8k / 32k / 128k tokens, stride 16): 1 mma.sync, 128 x 128 squares (xattention.cu)
// .193 / 1.46 ms; 2 wgmma, 128 x 256 .135 / 1.00 / 13.5.
#include "xattention.cuh"

constexpr int kStages = 4, kAhead = 2;
constexpr int kColumns = 256;
constexpr int kQueryBytes = kTile * kDepth * 2, kStageBytes = kQueryBytes + kColumns * kDepth * 2;

struct Squares {
  static constexpr int columns = kColumns;
  const SelectArgs& a;
  u32 stages;  // a multiple of 1024

  __device__ __forceinline__ void operator()(const char* q, const char* k, float* part, int row0, int column0, float scale_log2) const {
    const int halves = (a.head_dim + kDepth - 1) / kDepth, steps = STRIDE * halves, group = threadIdx.x / 128;
    auto load = [&](int step) {
      if (step < steps) {
        const int lag = step / halves, column = step % halves * kDepth;
        const u32 to = stages + step % kStages * kStageBytes;
        load_side<kTile>(to, q, a.q_row, row0, STRIDE - 1 - lag, a.q_offset, a.q_len, column, a.head_dim);
        load_side<kColumns>(to + kQueryBytes, k, a.k_row, column0, lag, 0, a.k_len, column, a.head_dim);
      }
      copy_commit();
    };
    float s[128];
    __syncthreads();  // the stages are free
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load(i);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      copy_wait<kAhead - 1>();
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
      load(step + kAhead);  // into the stage of two steps ago, whose products all warps have waited for
      const u32 stage = stages + step % kStages * kStageBytes;
      const u64 x = descriptor(stage + group * 64 * 128, 16), y = descriptor(stage + kQueryBytes, 16);
      pin(s);
      wgmma_fence();
#pragma unroll
      for (int kk = 0; kk < kDepth / 16; ++kk) wgmma_ss(s, advance(x, 32 * kk), advance(y, 32 * kk), step + kk > 0);
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    pin(s);
    store_blocks<32>(a, s, part, threadIdx.x / 32 * 16 + (threadIdx.x & 31) / 4, row0, column0, scale_log2);
  }
};

extern "C" __global__ void __launch_bounds__(256, 1) xattention(const __grid_constant__ SelectArgs a) {
  extern __shared__ char memory[];  // 1024 to align, four stages
  const u32 base = (shared_address(memory) + 1023) & ~1023u;
  choose_tiles(a, memory + (base - shared_address(memory)), Squares{a, base});
}
