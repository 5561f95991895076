// FlashPrefill's scores on sm_90a: the products of flashprefill.cu on wgmma. Two warpgroups hold 64 means each as operand
// fragments, query tiles come by TMA through four stages, one warp loads. The exponentials of one warpgroup overlap the
// products of the other.
// Versions (docs/decisions/cuda-kernel.md): 1 mma.sync, cp.async (flashprefill.cu); 2 wgmma, TMA.
//
// Macros: HEAD_DIM (64, 128), FP16.
#include "tiles.cuh"
#include "flashprefill.cuh"

constexpr int kStages = 4;

struct Shared { alignas(8) u64 full[kStages], empty[kStages]; };

// Grid (ceil(q_blocks / chunk), ceil(k_blocks / 128), batch * kv_heads), 288 threads, shared: 1024 + four query tiles + Shared.
extern "C" __global__ void __launch_bounds__(288, 1)
    flashprefill_scores(const __grid_constant__ TensorMap map_q, const __grid_constant__ SelectArgs a) {
  extern __shared__ char memory[];
  const u32 ring = (shared_address(memory) + 1023) & ~1023u;
  Shared* sh = (Shared*)(memory + (ring + kStages * kTileBytes - shared_address(memory)));
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, members = a.q_heads / a.kv_heads;
  const int batch = blockIdx.z / a.kv_heads, kv_head = blockIdx.z % a.kv_heads;
  // The first query block that has a key block of this tile in its past.
  const int from = max((int)blockIdx.x * a.chunk, (int)blockIdx.y * kTile + 1 - a.first_block);
  const int end = min(a.q_blocks, ((int)blockIdx.x + 1) * a.chunk), tiles = (end - from) * members;
  if (tiles <= 0) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_address(&sh->full[i]), 1);
      barrier_init(shared_address(&sh->empty[i]), 8);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (warp == 8) {
    if (lane == 0)
      for (int t = 0; t < tiles; ++t) {
        const u32 slot = t % kStages, full = shared_address(&sh->full[slot]);
        if (t >= kStages) barrier_wait(shared_address(&sh->empty[slot]), (t / kStages - 1) & 1);
        barrier_expect(full, kTileBytes);
        copy_tile(ring + slot * kTileBytes, &map_q, full, (a.first_block + from + t / members) * kTile - a.q_offset,
                  kv_head * members + t % members, batch);
      }
    return;
  }
  const int group0 = blockIdx.y * kTile + (warp / 4) * 64, column0 = blockIdx.y * kTile + 16 * warp;
  const float scale_log2 = a.scale * 1.44269504f;
  Means means;
  means.load(a, blockIdx.z, column0);
  float s[64];
  for (int t = 0; t < tiles; ++t) {
    const u32 slot = t % kStages, tile = ring + slot * kTileBytes;
    const int i = from + t / members;
    const bool past = group0 < a.first_block + i;
    barrier_wait(shared_address(&sh->full[slot]), (t / kStages) & 1);
    if (past) {
      const u64 d = descriptor(tile, 16);
      pin(s);
      wgmma_fence();
      product_qk(s, means.high, tile);
#pragma unroll
      for (int kk = 0; kk < kSteps; ++kk) wgmma_rs<0>(s, means.low[kk], advance(d, (kk / 4) * kHalfBytes + (kk % 4) * 32), 1);
      wgmma_commit();
      wgmma_wait<0>();
      pin(s);
    }
    if (lane == 0) barrier_arrive(shared_address(&sh->empty[slot]));
    if (past) store_scores(a, s, i, batch * a.q_heads + kv_head * members + t % members, column0, scale_log2);
  }
}
