// XAttention's selection (arXiv 2503.16428) on the device: tiles are scored by sums along antidiagonals of squares of
// STRIDE x STRIDE pairs, which are products of reversed query squares and key squares.
//
// A block takes 128 square rows (STRIDE query blocks) of one head from a counter, longest first, and walks over the key
// squares: a matrix product of depth STRIDE * head_dim in steps of 64 (xattention.cu and xattention_sm90.cu). The
// log-sum-exp of each row and key block goes to memory of the block's own; when the row is complete its softmax is summed
// by tiles, and each warp picks the tiles of its query blocks, heaviest first, without sorting.
//
// Macros: STRIDE (8, 16), FP16. Shapes: head_dim up to 128 in steps of 8, up to 3,000 key blocks.
#pragma once
#include "mma.cuh"
#include "select.cuh"

constexpr int kDepth = 64;                      // elements of a step
constexpr int kPerBlock = kTile / STRIDE;       // squares of a block
constexpr int kBlockTiles = kPerBlock / 8;      // accumulator tiles of a key block

__device__ __forceinline__ u32 depth_chunk(u32 base, int row, int chunk) { return base + row * 128 + ((chunk ^ (row & 7)) * 16); }

// `rows` rows of one side of a step: element `column` on of rows at positions (first + row) * STRIDE + lag, counted from `offset`.
template <int rows> __device__ __forceinline__ void load_side(u32 to, const char* x, long long stride, int first, int lag, int offset, int len, int column, int head_dim) {
#pragma unroll
  for (int n = 0; n < rows * 8 / 256; ++n) {
    const int i = threadIdx.x + 256 * n, row = i / 8, chunk = i % 8, at = (first + row) * STRIDE + lag - offset;
    const bool valid = at >= 0 && at < len && column + chunk * 8 < head_dim;
    copy_async(depth_chunk(to, row, chunk), x + 2 * (valid ? (long long)at * stride + column + chunk * 8 : 0), valid);
  }
}

// Keeps column 0, the diagonal and the heaviest others until their sum reaches the threshold. x: the warp's scores.
__device__ __forceinline__ void pick(const SelectArgs& a, int row, int position, int2 seen, float* x, float threshold) {
  const int lane = threadIdx.x & 31;
  double total = 0.0;
  for (int j = seen.x + lane; j < seen.y; j += 32) total += x[j];
  double wanted = threshold * warp_sum(total);
  wanted -= seen.x == 0 ? x[0] : 0.0f;
  if (position > 0) wanted -= x[position];
  __syncwarp();
  auto candidate = [&](int j) { return j >= seen.x && j < seen.y && j != 0 && j != position; };
  auto sum_from = [&](u32 least) {
    double sum = 0.0;
    for (int j = seen.x + lane; j < seen.y; j += 32)
      if (candidate(j) && __float_as_uint(x[j]) >= least) sum += x[j];
    return warp_sum(sum);
  };
  // The largest value down to which the candidates reach what is wanted, and how many of its equals it takes.
  u32 cut = 0xffffffffu;
  int ties = 0;
  if (wanted > 0.0) {
    cut = 0;
    for (int bit = 30; bit >= 0; --bit)
      if (sum_from(cut | 1u << bit) >= wanted) cut |= 1u << bit;
    const double value = __uint_as_float(cut), missing = wanted - sum_from(cut + 1);
    ties = value > 0.0 ? (int)fmin(ceil(missing / value), 1e6) : 1 << 20;
  }
  write_row(a, row, seen.y, [&](int j) {
    const bool mine = candidate(j), tie = mine && __float_as_uint(x[j]) == cut;
    const u32 tied = __ballot_sync(~0u, tie);
    const bool take = mine && cut != 0xffffffffu && (__float_as_uint(x[j]) > cut || (tie && __popc(tied & ((1u << lane) - 1)) < ties));
    ties -= __popc(tied);
    return take || (j >= seen.x && j < seen.y && (j == 0 || j == position));
  });
}

// The log-sum-exp by key blocks of two rows of a thread: row and row + 8 of the item, against the squares from `column` on,
// 8 * tiles of them.
template <int tiles>
__device__ __forceinline__ void store_blocks(const SelectArgs& a, float* s, float* part, int row, int row0, int column, float scale_log2) {
  const int lane = threadIdx.x & 31, squares = (a.k_len + STRIDE - 1) / STRIDE;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    // Causal by squares; with a window, those that hold a visible pair.
    const int at = row + 8 * r, high = min(row0 + at, squares - 1);
    const int low = a.window > 0 ? row0 + at - (a.window + STRIDE - 2) / STRIDE : 0;
#pragma unroll
    for (int b = 0; b < tiles / kBlockTiles; ++b) {
      const int first = column + 8 * b * kBlockTiles, block = first / kPerBlock;
      float top = NEG_INF, sum = 0.0f;
#pragma unroll
      for (int t = 0; t < kBlockTiles; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * (b * kBlockTiles + t) + 2 * r + e];
          const int c = first + 8 * t + 2 * (lane & 3) + e;
          x = c <= high && c >= low ? x * scale_log2 : NEG_INF;
          top = fmaxf(top, x);
        }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float ref = top == NEG_INF ? 0.0f : top;
#pragma unroll
      for (int t = 0; t < kBlockTiles; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) sum += exp2_approx(s[4 * (b * kBlockTiles + t) + 2 * r + e] - ref);
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if ((lane & 3) == 0 && block < a.k_blocks) part[at * a.k_blocks + block] = sum > 0.0f ? ref + log2_approx(sum) : NEG_INF;
    }
  }
}

// The whole selection, by a persistent grid of 256 threads a block. Product scores 128 square rows against
// Product::columns squares and stores their blocks. memory: its stages, later 8 rows of k_blocks floats.
template <typename Product> __device__ __forceinline__ void choose_tiles(const SelectArgs& a, char* memory, const Product& product) {
  __shared__ u32 claimed;
  __shared__ float lse[kTile];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, groups = (a.q_blocks + STRIDE - 1) / STRIDE;
  const u32 items = (u32)a.batch * a.q_heads * groups;
  const float scale_log2 = a.scale * 1.44269504f;
  float* part = a.scores + (long long)blockIdx.x * kTile * a.k_blocks;  // [128 rows, k_blocks], log2
  while (true) {
    __syncthreads();
    if (threadIdx.x == 0) claimed = atomicAdd(a.counter, 1u);
    __syncthreads();
    const u32 item = claimed;
    if (item >= items) break;
    const int heads = a.batch * a.q_heads, head = item % heads, group = groups - 1 - item / heads;
    const int batch = head / a.q_heads, q_head = head % a.q_heads, kv_head = q_head / (a.q_heads / a.kv_heads);
    const char* q = (const char*)a.q + 2 * (batch * a.q_batch + q_head * a.q_head);
    const char* k = (const char*)a.k + 2 * (batch * a.k_batch + kv_head * a.k_head);
    const int block0 = group * STRIDE, blocks = min(STRIDE, a.q_blocks - block0), position0 = a.first_block + block0;
    const int row0 = position0 * kPerBlock;  // square row of the first of 128
    const int end = visible_blocks(a, position0 + blocks - 1).y;  // key blocks
    const int from = visible_blocks(a, position0).x * kPerBlock / Product::columns, first = from * (Product::columns / kPerBlock);
    for (int tile = from; tile * Product::columns < end * kPerBlock; ++tile)
      product(q, k, part, row0, tile * Product::columns, scale_log2);
    __syncthreads();
    // The rows' sums; +inf where a square has no query, so that it counts nothing.
    for (int row = warp; row < kTile; row += 8) {
      float top = NEG_INF, sum = 0.0f;
      const int at = (row0 + row) * STRIDE - a.q_offset;
      const bool found = at + STRIDE > 0 && at < a.q_len && row / kPerBlock < blocks;
      if (found) {
        for (int j = first + lane; j < end; j += 32) top = fmaxf(top, part[row * a.k_blocks + j]);
        for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
        for (int j = first + lane; j < end; j += 32) sum += exp2_approx(part[row * a.k_blocks + j] - top);
        for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
      }
      if (lane == 0) lse[row] = found ? top + log2_approx(sum) : -NEG_INF;
    }
    __syncthreads();
    float* x = (float*)memory + warp * a.k_blocks;
    for (int b = warp; b < blocks; b += 8) {
      const int position = position0 + b;
      const int2 seen = visible_blocks(a, position);
      for (int j = seen.x + lane; j < seen.y; j += 32) {
        float sum = 0.0f;
#pragma unroll
        for (int r = 0; r < kPerBlock; ++r) sum += exp2_approx(part[(b * kPerBlock + r) * a.k_blocks + j] - lse[b * kPerBlock + r]);
        x[j] = sum;
      }
      __syncwarp();
      pick(a, head * a.q_blocks + block0 + b, position, seen, x, a.parameter[q_head]);
      __syncwarp();
    }
  }
  if (threadIdx.x == 0) {
    // The last block to finish leaves the counter as it was found.
    __threadfence();
    if (atomicAdd(a.counter + 1, 1u) == gridDim.x - 1) {
      a.counter[0] = 0;
      a.counter[1] = 0;
    }
  }
}
