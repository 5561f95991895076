// FlexPrefill's representative attention on sm_90a: the last 128 queries of each head against all keys, in two passes
// over K. The first finds the maximum and the sum of every row, the second recomputes the scores and adds the
// probabilities up by key and by distance; the last block of a head then decides its pattern (flexindex.cuh).
// Versions (H200, 128k tokens, both kernels): 16-row slabs 1.08 ms; rows paired in registers, columns by shuffles .93;
// one wave of blocks .88; decision from partial sums of tiles .68; queries of a chunk, the same.
// head_dim 64 or 128, 16-bit inputs, blocks of 128 tokens, n > 256. Scores and sums are float32.
//
// Macros: HEAD_DIM (64, 128), FP16, BANDS (a second rotation of the queries for distances from `band` on).
#include "tiles.cuh"
#include "flexindex.cuh"

constexpr int kRing = 2;
constexpr int kPitch = 136;                         // a warp's slab: 8 rows x columns -8..127, free of bank conflicts
constexpr int kSlab = 8 * kPitch;
constexpr int kSlabBytes = 8 * kSlab * 4;           // also takes the query tile at the start
constexpr int kDiagonals = 144;                     // 16 + 127 diagonals of a warp's 16 x 128 scores

#ifdef BANDS
constexpr int kBlocks = 1;  // on a processor: the registers of a second query tile
#define SECOND_QUERY const __grid_constant__ TensorMap map_q2,
#define SECOND_MAP &map_q2
#else
constexpr int kBlocks = 2;
#define SECOND_QUERY
#define SECOND_MAP nullptr
#endif

struct Scores {
  alignas(8) u64 q_full, k_full[kRing], k_empty[kRing];
  float column[8][kTile];
  float diagonal[8][kDiagonals];
};

// One block of 256 threads: two warpgroups of 64 probe rows, keys in tiles of 128, loads one tile ahead.
struct Probe {
  u32 ring, slab;
  Scores* sh;
  u32 q[kHalves * 4][4];
#ifdef BANDS
  u32 q2[kHalves * 4][4];
#endif
  float s[64];

  __device__ __forceinline__ void load(const TensorMap* map_k, int tile, int i, int head, int batch) {
    const u32 slot = i % kRing;
    if (i >= kRing) barrier_wait(shared_address(&sh->k_empty[slot]), (i / kRing - 1) & 1);
    barrier_expect(shared_address(&sh->k_full[slot]), kTileBytes);
    copy_tile(ring + slot * kTileBytes, map_k, shared_address(&sh->k_full[slot]), tile * kTile, head, batch);
  }
  __device__ __forceinline__ void take_query(u32 (&x)[kHalves * 4][4], const TensorMap* map, const IndexArgs& a, int head, u32 phase) {
    if (threadIdx.x == 0) {
      barrier_expect(shared_address(&sh->q_full), kTileBytes);
      copy_tile(slab, map, shared_address(&sh->q_full), a.n - kTile - a.q_offset, head % a.q_heads, head / a.q_heads);
    }
    barrier_wait(shared_address(&sh->q_full), phase);
    load_query(x, slab + (threadIdx.x / 32) * 16 * 128);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();  // the slab is free again
  }
  __device__ __forceinline__ void start(char* memory, const TensorMap* map_q, const TensorMap* map_k, const TensorMap* map_q2,
                                        const IndexArgs& a, int head, int first) {
    ring = (shared_address(memory) + 1023) & ~1023u;
    slab = ring + kRing * kTileBytes;
    sh = (Scores*)(memory + (slab + kSlabBytes - shared_address(memory)));
    if (threadIdx.x == 0) {
      barrier_init(shared_address(&sh->q_full), 1);
      for (int i = 0; i < kRing; ++i) {
        barrier_init(shared_address(&sh->k_full[i]), 1);
        barrier_init(shared_address(&sh->k_empty[i]), 8);
      }
      fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) load(map_k, first, 0, kv_head_of(a, head % a.q_heads), head / a.q_heads);
    take_query(q, map_q, a, head, 0);
#ifdef BANDS
    take_query(q2, map_q2, a, head, 1);
#endif
  }
  __device__ __forceinline__ void multiply(float (&x)[64], const u32 (&by)[kHalves * 4][4], u32 k) {
    pin(x);
    wgmma_fence();
    product_qk(x, by, k);
    wgmma_commit();
    wgmma_wait<0>();
    pin(x);
  }
  // The thread's distance of its score i, before the block's: query minus key, from row 0 and key 0 of the tile.
  __device__ __forceinline__ static int distance(int row, int i) {
    return row + ((i >> 1) & 1) * 8 - 2 * ((int)threadIdx.x & 3) - (i / 4) * 8 - (i & 1);
  }
  __device__ __forceinline__ static float sum(const float (&x)[64]) {
    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 64; ++i) total[i & 3] += x[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
  }
  // Scores of tile i of this block, `tile` of all, raw; with estimating also their sum, every pair at the band of the middles.
  // row: the thread's first row.
  template <bool estimating> __device__ __forceinline__ float product(const IndexArgs& a, int i, int tile, int row) {
    const u32 slot = i % kRing, k = ring + slot * kTileBytes;
    barrier_wait(shared_address(&sh->k_full[slot]), (i / kRing) & 1);
    float total = 0.0f;
#ifdef BANDS
    const int apart = a.n - kTile - tile * kTile;  // the distance of row 0 and key 0
    const bool far = apart - (kTile - 1) >= a.band;
    u32 by[kHalves * 4][4];
#pragma unroll
    for (int kk = 0; kk < kHalves * 4; ++kk)
#pragma unroll
      for (int j = 0; j < 4; ++j) by[kk][j] = far ? q2[kk][j] : q[kk][j];
    multiply(s, by, k);
    if (estimating) total = sum(s);
    if (!far && apart + kTile - 1 >= a.band) {  // the border crosses the tile
      float other[64];
      multiply(other, q2, k);
      const int middle = (2 * tile * kTile + min(a.n - tile * kTile, kTile) - 1) / 2;
      if (estimating && a.n - kTile / 2 - 1 - middle >= a.band) total = sum(other);
#pragma unroll
      for (int x = 0; x < 64; ++x)
        if (apart + distance(row, x) >= a.band) s[x] = other[x];
    }
#else
    multiply(s, q, k);
    if (estimating) total = sum(s);
#endif
    if ((threadIdx.x & 31) == 0) barrier_arrive(shared_address(&sh->k_empty[slot]));
    return total;
  }
  // Softcap, and what the rows may not see.
  __device__ __forceinline__ void mask(const IndexArgs& a, int tile, int row) {
    const int apart = a.n - kTile - tile * kTile;
    if (a.softcap > 0.0f) {
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = capped(a, s[i] * a.scale) / a.scale;
    }
    if (apart < kTile - 1) {
#pragma unroll
      for (int i = 0; i < 64; ++i)
        if (apart + distance(row, i) < 0) s[i] = NEG_INF;
    }
    if (a.window > 0 && apart + kTile - 1 >= a.window) {
#pragma unroll
      for (int i = 0; i < 64; ++i)
        if (apart + distance(row, i) >= a.window) s[i] = NEG_INF;
    }
  }
};

// Stores the sum of x over the warp as its part of a tile.
__device__ __forceinline__ void store_part(float* parts, const IndexArgs& a, int head, int tile, float x) {
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  if ((threadIdx.x & 31) == 0) parts[((long long)head * a.blocks + tile) * kParts + threadIdx.x / 32] = x;
}

extern "C" __global__ void __launch_bounds__(256, kBlocks)
    flexindex_rows(const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_k, SECOND_QUERY
                   const __grid_constant__ IndexArgs a) {
  extern __shared__ char memory[];
  const int split = blockIdx.x, head = blockIdx.y, first = split * a.tiles_per_split;
  const int tiles = min(a.tiles_per_split, a.blocks - first);
  const int batch = head / a.q_heads, kv_head = kv_head_of(a, head % a.q_heads);
  const float scale = a.scale * 1.44269504f;
  const int row = (threadIdx.x / 32) * 16 + (threadIdx.x & 31) / 4;
  Probe p;
  p.start(memory, &map_q, &map_k, SECOND_MAP, a, head, first);
  float m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};
  for (int i = 0; i < tiles; ++i) {
    if (threadIdx.x == 0 && i + 1 < tiles) p.load(&map_k, first + i + 1, i + 1, kv_head, batch);
    // The mean score of a tile is the product of the means: what the pooled queries and keys would give.
    store_part(a.estimate_part, a, head, first + i, p.product<true>(a, i, first + i, row));
    p.mask(a, first + i, row);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = m[r];
#pragma unroll
      for (int j = 0; j < 16; ++j) top = fmaxf(fmaxf(top, p.s[4 * j + 2 * r]), p.s[4 * j + 2 * r + 1]);
      const float ref = top == NEG_INF ? 0.0f : top * scale;
      float sum[2] = {l[r] * exp2_approx(m[r] * scale - ref), 0.0f};
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        sum[0] += exp2_approx(__fmaf_rn(p.s[4 * j + 2 * r], scale, -ref));
        sum[1] += exp2_approx(__fmaf_rn(p.s[4 * j + 2 * r + 1], scale, -ref));
      }
      m[r] = top;
      l[r] = sum[0] + sum[1];
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = m[r];
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float sum = m[r] == NEG_INF ? 0.0f : l[r] * exp2_approx((m[r] - top) * scale);
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if ((threadIdx.x & 3) == 0) {
      float* out = a.partial + (((long long)head * a.splits + split) * kTile + row + 8 * r) * 2;
      out[0] = top * scale;
      out[1] = sum;
    }
  }
}

// log2 of the whole row's sum, from the partial rows.
__device__ __forceinline__ float row_lse(const IndexArgs& a, int head, int row) {
  const float2* part = (const float2*)a.partial + (long long)head * a.splits * kTile + row;
  float top = NEG_INF, sum = 0.0f;
  for (int i = 0; i < a.splits; ++i) top = fmaxf(top, part[i * kTile].x);
  for (int i = 0; i < a.splits; ++i) {
    const float2 x = part[i * kTile];
    if (x.y > 0.0f) sum += x.y * exp2f(x.x - top);
  }
  return top + log2f(sum);
}

// One step of a sum over the lanes lane ^ width: each keeps half of its 2 width values. Lane bits 4, 3, 2 choose the half.
template <int width> __device__ __forceinline__ void halve(float (&x)[32], int lane) {
  const bool upper = lane & width;
#pragma unroll
  for (int j = 0; j < width; ++j) {
    const float give = upper ? x[j] : x[j + width], own = upper ? x[j + width] : x[j];
    x[j] = own + __shfl_xor_sync(~0u, give, width);
  }
}

extern "C" __global__ void __launch_bounds__(256, kBlocks)
    flexindex_sums(const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_k, SECOND_QUERY
                   const __grid_constant__ IndexArgs a) {
  extern __shared__ char memory[];
  const int split = blockIdx.x, head = blockIdx.y, first = split * a.tiles_per_split;
  const int tiles = min(a.tiles_per_split, a.blocks - first);
  const int batch = head / a.q_heads, kv_head = kv_head_of(a, head % a.q_heads);
  const float scale = a.scale * 1.44269504f;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, row = warp * 16 + lane / 4;
  Probe p;
  p.start(memory, &map_q, &map_k, SECOND_MAP, a, head, first);
  if (threadIdx.x < kTile) p.sh->column[0][threadIdx.x] = row_lse(a, head, threadIdx.x);
  __syncthreads();
  const float lse[2] = {p.sh->column[0][row], p.sh->column[0][row + 8]};
  __syncthreads();
  float* slab = (float*)(memory + (p.slab - shared_address(memory))) + warp * kSlab;
  for (int i = 0; i < tiles; ++i) {
    if (threadIdx.x == 0 && i + 1 < tiles) p.load(&map_k, first + i + 1, i + 1, kv_head, batch);
    p.product<false>(a, i, first + i, row);
    p.mask(a, first + i, row);
#pragma unroll
    for (int j = 0; j < 64; ++j) p.s[j] = exp2_approx(__fmaf_rn(p.s[j], scale, -lse[(j >> 1) & 1]));
    // Rows r and r + 8 of a thread meet on a diagonal eight columns apart: eight rows are left to add through shared memory.
    const int r0 = lane / 4, c0 = 2 * (lane & 3);
    float2* x = (float2*)(slab + r0 * kPitch + c0);
    x[0] = make_float2(p.s[2], p.s[3]);
#pragma unroll
    for (int j = 0; j < 15; ++j) x[4 * j + 4] = make_float2(p.s[4 * j] + p.s[4 * j + 6], p.s[4 * j + 1] + p.s[4 * j + 7]);
    x[64] = make_float2(p.s[60], p.s[61]);
    // Columns: both rows of the thread, then the eight lanes that share its columns, halving the set at every step.
    float column[32];
#pragma unroll
    for (int j = 0; j < 32; ++j) column[j] = p.s[4 * (j / 2) + (j & 1)] + p.s[4 * (j / 2) + (j & 1) + 2];
    halve<16>(column, lane);
    halve<8>(column, lane);
    halve<4>(column, lane);
    // Four values are left: of the 32, those from 16 (lane >> 4 & 1) + 8 (lane >> 3 & 1) + 4 (lane >> 2 & 1).
    const int from = 16 * (lane >> 4 & 1) + 8 * (lane >> 3 & 1) + 4 * (lane >> 2 & 1);
    *(float2*)(p.sh->column[warp] + 8 * (from / 2) + c0) = make_float2(column[0], column[1]);
    *(float2*)(p.sh->column[warp] + 8 * (from / 2 + 1) + c0) = make_float2(column[2], column[3]);
    store_part(a.v_part, a, head, first + i, (column[0] + column[1]) + (column[2] + column[3]));
    __syncwarp();
#pragma unroll
    for (int t = 0; t < 5; ++t) {
      float diagonal = 0.0f;
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int c = lane + 32 * t - 7 + r;
        if ((t > 0 && t < 4) || (u32)c < (u32)kPitch) diagonal += slab[r * kPitch + c];
      }
      if (t < 4 || lane < 15) p.sh->diagonal[warp][lane + 32 * t] = diagonal;
    }
    __syncthreads();
    const int tile = first + i;
    if (threadIdx.x < kTile && tile * kTile + threadIdx.x < a.n) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < 8; ++w) sum += p.sh->column[w][threadIdx.x];
      a.vertical[(long long)head * a.n + tile * kTile + threadIdx.x] = sum * (1.0f / kTile);
    }
    const int difference = (int)threadIdx.x - 127;  // column minus row in the tile
    const int distance = a.n - kTile - tile * kTile - difference;
    if (threadIdx.x < 255 && distance >= 0 && distance < a.n) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < 8; ++w) {
        const int x = difference + 16 * w + 15;
        if (x >= 0 && x < 143) sum += p.sh->diagonal[w][x];
      }
      // Two tiles meet at a distance: the order of two additions to zero does not matter.
      atomicAdd(a.slash + (long long)head * a.n + distance, sum * (1.0f / kTile));
    }
    __syncthreads();
  }
  if (last_block(a.done + head, gridDim.x)) decide_head<true>(a, head, (float*)p.sh->column);
}
