// FlashPrefill's selection (arXiv 2603.06199) on the device: every query against the mean of every key block wholly before
// it, log-sum-exp over the queries of a block, and the key blocks that reach alpha of the best.
//
// The scores are means x queries, so that the sum over queries runs along a thread's own accumulators: a warp holds 16
// means as operand fragments and walks over the queries of its group of heads, which share them. Means are kept as two
// 16-bit numbers, so that the scores are those of float32 means. On sm_90a the scores come from flashprefill_sm90.cu.
// Versions (H100, whole selection at 32k tokens): 1 query tiles through two stages of cp.async .41 ms.
//
// Macros: HEAD_DIM (64, 128), FP16.
#include "mma.cuh"
#include "flashprefill.cuh"

constexpr int kQueryBytes = kTile * kRowBytes;
// 1. The means. Grid (k_blocks rounded up to 128, batch * kv_heads), 256 threads.
extern "C" __global__ void __launch_bounds__(256) flashprefill_pool(const __grid_constant__ SelectArgs a) {
  __shared__ float2 scratch[256];
  constexpr int pairs = HEAD_DIM / 2, groups = 256 / pairs;
  const int j = blockIdx.x, batch = blockIdx.y / a.kv_heads, head = blockIdx.y % a.kv_heads;
  const int pair = threadIdx.x % pairs, group = threadIdx.x / pairs, count = max(0, min(kTile, a.k_len - j * kTile));
  const u32* k = (const u32*)a.k + (batch * a.k_batch + head * a.k_head + (long long)j * kTile * a.k_row) / 2 + pair;
  float2 sum = make_float2(0.0f, 0.0f);
  if (2 * pair < a.head_dim)
#pragma unroll 8
    for (int r = group; r < count; r += groups) {
      const u32 x = k[(long long)r * a.k_row / 2];
      sum.x += unpack_lo(x);
      sum.y += unpack_hi(x);
    }
  scratch[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= pairs) return;
  for (int g = 1; g < groups; ++g) {
    sum.x += scratch[g * pairs + pair].x;
    sum.y += scratch[g * pairs + pair].y;
  }
  const float n = (float)max(count, 1);
  sum.x /= n;
  sum.y /= n;
  const u32 high = pack(sum.x, sum.y);
  const long long all = (long long)a.batch * a.kv_heads * padded_blocks(a) * pairs;
  u32* out = (u32*)a.pooled + ((long long)blockIdx.y * padded_blocks(a) + j) * pairs + pair;
  out[0] = high;
  out[all] = pack(sum.x - unpack_lo(high), sum.y - unpack_hi(high));
}

// Query tile of one block and head, zeros where there is no query.
__device__ __forceinline__ void load_tile(const SelectArgs& a, u32 to, long long base, int first) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kTile * kChunks; i += 256) {
    const int row = i / kChunks, chunk = i % kChunks, r = first + row;
    const bool valid = r >= 0 && r < a.q_len && chunk * 8 < a.head_dim;
    copy_async(chunk_at(to, row, chunk), (const char*)a.q + 2 * (valid ? base + (long long)r * a.q_row + chunk * 8 : 0), valid);
  }
}

// 2. The scores. Grid (ceil(q_blocks / chunk), ceil(k_blocks / 128), batch * kv_heads), 256 threads, two query tiles of
// shared memory.
extern "C" __global__ void __launch_bounds__(256, 1) flashprefill_scores(const __grid_constant__ SelectArgs a) {
  extern __shared__ __align__(128) char memory[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, members = a.q_heads / a.kv_heads;
  const int batch = blockIdx.z / a.kv_heads, kv_head = blockIdx.z % a.kv_heads, column0 = blockIdx.y * kTile + 16 * warp;
  // The first query block that has a key block of this tile in its past.
  const int from = max((int)blockIdx.x * a.chunk, (int)blockIdx.y * kTile + 1 - a.first_block);
  const int end = min(a.q_blocks, ((int)blockIdx.x + 1) * a.chunk), tiles = (end - from) * members;
  if (tiles <= 0) return;
  const u32 stages = shared_address(memory);
  const float scale_log2 = a.scale * 1.44269504f;
  auto load = [&](int t, int slot) {
    if (t < tiles)
      load_tile(a, stages + slot * kQueryBytes, batch * a.q_batch + (kv_head * members + t % members) * a.q_head,
                (a.first_block + from + t / members) * kTile - a.q_offset);
    copy_commit();
  };
  load(0, 0);
  Means means;
  means.load(a, blockIdx.z, column0);
  float s[64];
  for (int t = 0; t < tiles; ++t) {
    load(t + 1, (t + 1) & 1);
    copy_wait<1>();
    __syncthreads();
    const u32 tile = stages + (t & 1) * kQueryBytes;
    const int i = from + t / members, position = a.first_block + i, head = batch * a.q_heads + kv_head * members + t % members;
    if (column0 < position) {
#pragma unroll
      for (int x = 0; x < 64; ++x) s[x] = 0.0f;
#pragma unroll
      for (int kk = 0; kk < kSteps; ++kk)
#pragma unroll
        for (int n = 0; n < 8; ++n) {  // 16 queries
          u32 b[4];
          ldmatrix_x4(chunk_at(tile, 16 * n + (lane & 7) + (lane >> 4) * 8, 2 * kk + ((lane >> 3) & 1)), b);
          mma(s + 8 * n, means.high[kk], b[0], b[1]);
          mma(s + 8 * n + 4, means.high[kk], b[2], b[3]);
          mma(s + 8 * n, means.low[kk], b[0], b[1]);
          mma(s + 8 * n + 4, means.low[kk], b[2], b[3]);
        }
      store_scores(a, s, i, head, column0, scale_log2);
    }
    __syncthreads();
  }
  copy_wait<0>();
}

// A float as an unsigned number of the same order.
__device__ __forceinline__ u32 ordered(float x) {
  const u32 bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// 3. The kept blocks. A warp for each row: grid ceil(rows / 8), 256 threads.
extern "C" __global__ void __launch_bounds__(256) flashprefill_rows(const __grid_constant__ SelectArgs a) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (row >= a.batch * a.q_heads * a.q_blocks) return;
  const int i = row % a.q_blocks, position = a.first_block + i;
  const int2 seen = visible_blocks(a, position);
  const float* x = a.scores + (long long)row * a.k_blocks;
  const int past = a.scores ? min(position, a.k_blocks) : seen.x;
  float best = NEG_INF;
  for (int j = seen.x + lane; j < past; j += 32) best = fmaxf(best, x[j]);
  for (int o = 16; o; o >>= 1) best = fmaxf(best, __shfl_xor_sync(~0u, best, o));
  const float alpha = a.parameter[row / a.q_blocks % a.q_heads];
  float least = alpha > 0.0f ? best + log2f(alpha) : NEG_INF;
  // The best few: the lowest score of theirs, and how many of its equals.
  u32 cut = 0xffffffffu;
  int ties = 0;
  if (a.fewest > 0 && past > seen.x) {
    const int keep = min(a.fewest, past - seen.x);
    cut = 0;
    for (int bit = 31; bit >= 0; --bit) {
      const u32 candidate = cut | 1u << bit;
      int count = 0;
      for (int j = seen.x + lane; j < past; j += 32) count += ordered(x[j]) >= candidate;
      for (int o = 16; o; o >>= 1) count += __shfl_xor_sync(~0u, count, o);
      if (count >= keep) cut = candidate;
    }
    int above = 0;
    for (int j = seen.x + lane; j < past; j += 32) above += ordered(x[j]) > cut;
    for (int o = 16; o; o >>= 1) above += __shfl_xor_sync(~0u, above, o);
    ties = keep - above;
  }
  const bool all = i >= a.q_blocks - a.last;
  write_row(a, row, seen.y, [&](int j) {
    const bool see = j >= seen.x && j < seen.y, scored = see && j < past;
    const float s = scored ? x[j] : NEG_INF;
    const bool tie = scored && ordered(s) == cut;
    const u32 tied = __ballot_sync(~0u, tie);
    const bool few = scored && (ordered(s) > cut || (tie && __popc(tied & ((1u << lane) - 1)) < ties));
    ties -= __popc(tied);
    return see && (all || few || j < a.sinks || j > position - a.near || (scored && s >= least));
  });
}
