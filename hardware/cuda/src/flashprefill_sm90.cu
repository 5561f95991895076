// FlashPrefill's scores on sm_90a: the products of flashprefill.cu on wgmma. Two warpgroups hold 64 means each as operand
// fragments, query tiles come by TMA through four stages, one thread loads. The exponentials of a tile overlap the products
// of the next.
// Versions (H100, whole selection at 32k / 128k tokens): 1 mma.sync, cp.async (flashprefill.cu) .41 ms; 2 wgmma, TMA
// .263 / 2.66; 3 two accumulators in turn .252 / 2.47.
//
// Macros: HEAD_DIM (64, 128), FP16.
#include "tiles.cuh"
#include "flashprefill.cuh"

constexpr int kStages = 4;

struct Shared { alignas(8) u64 full[kStages], empty[kStages]; };

// Range is the tiles of a block: those of query blocks from `from` on, the query heads of a key head innermost.
struct Range { int from, tiles, members, batch, kv_head; };

__device__ __forceinline__ void produce(const SelectArgs& a, const Range& x, u32 ring, Shared* sh, const TensorMap* map_q) {
  for (int t = 0; t < x.tiles; ++t) {
    const u32 slot = t % kStages, full = shared_address(&sh->full[slot]);
    if (t >= kStages) barrier_wait(shared_address(&sh->empty[slot]), (t / kStages - 1) & 1);
    barrier_expect(full, kTileBytes);
    copy_tile(ring + slot * kTileBytes, map_q, full, (a.first_block + x.from + t / x.members) * kTile - a.q_offset,
              x.kv_head * x.members + t % x.members, x.batch);
  }
}

__device__ __forceinline__ void consume(const SelectArgs& a, const Range& x, u32 ring, Shared* sh) {
  const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x & 31;
  const int group0 = blockIdx.y * kTile + (warp / 4) * 64, column0 = blockIdx.y * kTile + 16 * warp;
  const float scale_log2 = a.scale * 1.44269504f;
  Means means;
  means.load(a, blockIdx.z, column0);
  auto wait = [&](int t) { barrier_wait(shared_address(&sh->full[t % kStages]), (t / kStages) & 1); };
  auto release = [&](int t) { if (lane == 0) barrier_arrive(shared_address(&sh->empty[t % kStages])); };
  auto start = [&](float (&s)[64], int t) {
    const u32 tile = ring + t % kStages * kTileBytes;
    const u64 d = descriptor(tile, 16);
    wait(t);
    pin(s);
    wgmma_fence();
    product_qk(s, means.high, tile);
#pragma unroll
    for (int kk = 0; kk < kSteps; ++kk) wgmma_rs<0>(s, means.low[kk], advance(d, (kk / 4) * kHalfBytes + (kk % 4) * 32), 1);
    wgmma_commit();
  };
  auto end_of = [&](float (&s)[64], int t) {
    wgmma_wait<0>();
    pin(s);
    release(t);
  };
  auto store = [&](float (&s)[64], int t) {
    store_scores(a, s, x.from + t / x.members, x.batch * a.q_heads + x.kv_head * x.members + t % x.members, column0, scale_log2);
  };
  int t = 0;
  for (; t < x.tiles && group0 >= a.first_block + x.from + t / x.members; ++t) {  // none of the 64 means is in the past yet
    wait(t);
    release(t);
  }
  if (t == x.tiles) return;
  const int t0 = t;
  // The products of the next tile run while the exponentials of this one are summed.
  float s[64], next[64];
  start(s, t);
  while (true) {
    end_of(s, t);
    if (t + 1 == x.tiles) break;
    start(next, t + 1);
    store(s, t++);
    end_of(next, t);
    if (t + 1 == x.tiles) break;
    start(s, t + 1);
    store(next, t++);
  }
  if ((x.tiles - t0) & 1) store(s, t);
  else store(next, t);
}

// Grid (ceil(q_blocks / chunk), ceil(k_blocks / 128), batch * kv_heads), 384 threads, shared: 1024 + four query tiles + Shared.
extern "C" __global__ void __launch_bounds__(384, 1)
    flashprefill_scores(const __grid_constant__ TensorMap map_q, const __grid_constant__ SelectArgs a) {
  extern __shared__ char memory[];
  const u32 ring = (shared_address(memory) + 1023) & ~1023u;
  Shared* sh = (Shared*)(memory + (ring + kStages * kTileBytes - shared_address(memory)));
  const int members = a.q_heads / a.kv_heads;
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
  const Range x = {from, tiles, members, (int)blockIdx.z / a.kv_heads, (int)blockIdx.z % a.kv_heads};
  if (threadIdx.x < 128) {
    registers_give<40>();
    if (threadIdx.x == 0) produce(a, x, ring, sh, &map_q);
  } else {
    registers_take<232>();
    consume(a, x, ring, sh);
  }
}
