// The products of xattention.cuh for any device from sm_80: mma.sync, 128 x 128 squares, 32 x 64 a warp, three stages of
// cp.async. Versions (H100, 32k tokens, stride 16): 1 1.46 ms.
#include "xattention.cuh"

constexpr int kStages = 3;
constexpr int kSideBytes = kTile * kDepth * 2;  // one side of a stage

struct Squares {
  static constexpr int columns = kTile;
  const SelectArgs& a;
  u32 stages;

  __device__ __forceinline__ void operator()(const char* q, const char* k, float* part, int row0, int column0, float scale_log2) const {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, rows = (warp / 2) * 32, side = (warp % 2) * 64;
    float s[2][32];
    const int halves = (a.head_dim + kDepth - 1) / kDepth, steps = STRIDE * halves;
    auto load = [&](int step, int slot) {
      if (step < steps) {
        const int lag = step / halves, column = step % halves * kDepth;
        load_side<kTile>(stages + slot * 2 * kSideBytes, q, a.q_row, row0, STRIDE - 1 - lag, a.q_offset, a.q_len, column, a.head_dim);
        load_side<kTile>(stages + slot * 2 * kSideBytes + kSideBytes, k, a.k_row, column0, lag, 0, a.k_len, column, a.head_dim);
      }
      copy_commit();
    };
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int x = 0; x < 32; ++x) s[m][x] = 0.0f;
    __syncthreads();  // the stages are free
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) load(i, i);
    int slot = 0;
    for (int step = 0; step < steps; ++step) {
      copy_wait<kStages - 2>();
      __syncthreads();
      load(step + kStages - 1, slot == 0 ? kStages - 1 : slot - 1);
      const u32 qs = stages + slot * 2 * kSideBytes, ks = qs + kSideBytes;
#pragma unroll
      for (int kk = 0; kk < kDepth / 16; ++kk) {
        u32 x[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
          ldmatrix_x4(depth_chunk(qs, rows + 16 * m + (lane & 7) + ((lane >> 3) & 1) * 8, 2 * kk + (lane >> 4)), x[m]);
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          u32 b[4];
          ldmatrix_x4(depth_chunk(ks, side + 16 * t + (lane & 7) + (lane >> 4) * 8, 2 * kk + ((lane >> 3) & 1)), b);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            mma(s[m] + 8 * t, x[m], b[0], b[1]);
            mma(s[m] + 8 * t + 4, x[m], b[2], b[3]);
          }
        }
      }
      slot = slot == kStages - 1 ? 0 : slot + 1;
    }

#pragma unroll
    for (int m = 0; m < 2; ++m)
      store_blocks<8>(a, s[m], part, rows + 16 * m + lane / 4, row0, column0 + side, scale_log2);
  }
};

extern "C" __global__ void __launch_bounds__(256, 1) xattention(const __grid_constant__ SelectArgs a) {
  extern __shared__ __align__(128) char memory[];
  choose_tiles(a, memory, Squares{a, shared_address(memory)});
}
