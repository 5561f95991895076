// FlexPrefill's selection on the device (arXiv 2502.20766, by one of three rules): pooled keys, block
// scores of query-aware heads, the number of tokens that reach gamma, the best blocks, and a CSR mask. No value is sorted:
// thresholds come from three exact histograms over the bits of the probabilities (integer sums, so the order of the
// atomics does not matter). With the two score kernels: 10 launches, no host synchronisation, any length at run time.
// Versions (the whole index at 128k tokens, H200): 1 bits of the mask tested one by one, 1.27 ms; 2 rows of the mask as words,
// 1.16; 3 decisions from partial sums of tiles, .87; 4 chunks, gamma and tau by head, the same (H100 .91).
// FLOAT_INPUT: q and k are float32; otherwise bf16, or fp16 with FP16.
#include "flexindex.cuh"
#include "csr.cuh"

constexpr int kChunk = 4096;  // values of one histogram block: 4096 sums of 20 bits fit 32 bits
constexpr int kRows = 16;     // query blocks of one block-score block

__device__ __forceinline__ int heads_of(const IndexArgs& a) { return a.batch * a.q_heads; }
// Causal tiles before query block i of a head.
__device__ __forceinline__ long long tiles_before(const IndexArgs& a, int i) {
  const long long first = a.first_block, end = first + i;
  return end * (end + 1) / 2 - first * (first + 1) / 2;
}

// Mean of rows [first, first + count) of x into out[d] (shared or global), by all threads of a 256-thread block.
__device__ __forceinline__ void mean_rows(const void* x, long long base, long long stride, int first, int count, int d,
                                          float* out, float2* scratch) {
  const int pairs = d / 2, pair = threadIdx.x % pairs, group = threadIdx.x / pairs, groups = 256 / pairs;
  float2 sum = make_float2(0.0f, 0.0f);
  if (group < groups) {
#pragma unroll 8
    for (int r = group; r < count; r += groups) {
      const float2 v = load_pair(x, base + (long long)(first + r) * stride + 2 * pair);
      sum.x += v.x;
      sum.y += v.y;
    }
    scratch[group * pairs + pair] = sum;
  }
  __syncthreads();
  if (threadIdx.x < pairs) {
    sum = make_float2(0.0f, 0.0f);
    for (int g = 0; g < groups; ++g) {
      sum.x += scratch[g * pairs + pair].x;
      sum.y += scratch[g * pairs + pair].y;
    }
    out[2 * pair] = sum.x / count;
    out[2 * pair + 1] = sum.y / count;
  }
  __syncthreads();
}

// 1. Pooled keys, and everything the later kernels add to set to zero. Grid (blocks, batch * kv_heads), 256 threads.
extern "C" __global__ void __launch_bounds__(256) flexindex_pool(const __grid_constant__ IndexArgs a) {
  __shared__ float2 scratch[256];
  const int j = blockIdx.x, batch = blockIdx.y / a.kv_heads, kv_head = blockIdx.y % a.kv_heads;
  mean_rows(a.k, batch * a.k_batch + kv_head * a.k_head, a.k_row, j * a.block, min(a.block, a.n - j * a.block), a.d,
            a.k_mean + ((long long)blockIdx.y * a.blocks + j) * a.d, scratch);
  const long long thread = ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 256 + threadIdx.x;
  const long long threads = (long long)gridDim.x * gridDim.y * 256;
  const int heads = heads_of(a);
  for (long long i = thread; i < (long long)heads * a.n; i += threads) a.slash[i] = 0.0f;
  for (long long i = thread; i < 6ll * heads * kBins1; i += threads) { a.hist_count[i] = 0; a.hist_low[i] = 0; }
  for (long long i = thread; i < 2 * heads; i += threads) a.state[i] = IndexState{0.0, 0, 0, 0, 0};
}

// 4. Row-wise softmax of pooled queries against pooled keys, query-aware heads only.
// Grid (ceil(blocks / 16), heads), 256 threads, shared: kRows * (d + blocks) + 64 * (d + 4) floats, and kRows * d of the second rotation.
extern "C" __global__ void __launch_bounds__(256) flexindex_blocks(const __grid_constant__ IndexArgs a) {
  const int head = blockIdx.y;
  if (!a.aware[head]) return;
  extern __shared__ float shared[];
  __shared__ float2 scratch[256];
  float* q = shared;                       // [kRows, d]
  float* logits = q + kRows * a.d;         // [kRows, blocks]
  float* keys = logits + kRows * a.blocks; // [64, d + 4]
  float* q2 = keys + 64 * (a.d + 4);       // [kRows, d], with a.q2
  const int first = blockIdx.x * kRows, rows = min(kRows, a.q_blocks - first), last = a.first_block + first + rows - 1, pitch = a.d + 4;
  const int batch = head / a.q_heads, q_head = head % a.q_heads;
  for (int r = 0; r < rows; ++r) {
    const int at = (a.first_block + first + r) * a.block, from = max(at, a.q_offset);  // positions
    mean_rows(a.q, batch * a.q_batch + q_head * a.q_head, a.q_row, from - a.q_offset, min(at + a.block, a.n) - from, a.d,
              q + r * a.d, scratch);
    if (a.q2)
      mean_rows(a.q2, batch * a.q2_batch + q_head * a.q2_head, a.q2_row, from - a.q_offset, min(at + a.block, a.n) - from, a.d,
                q2 + r * a.d, scratch);
  }
  const float* k_mean = a.k_mean + (long long)(batch * a.kv_heads + kv_head_of(a, q_head)) * a.blocks * a.d;
  const int column = threadIdx.x % 64, quarter = threadIdx.x / 64;  // 4 rows x 1 column each
  for (int j0 = 0; j0 <= last; j0 += 64) {
    const int keys_here = min(64, a.blocks - j0);
    for (int i = threadIdx.x; i < keys_here * a.d / 4; i += 256) {
      const int r = i / (a.d / 4), c = i % (a.d / 4);
      *(float4*)(keys + r * pitch + 4 * c) = *(const float4*)(k_mean + (long long)(j0 + r) * a.d + 4 * c);
    }
    __syncthreads();
    if (column < keys_here) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      int by[4];  // where the rows are, from q
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = quarter * 4 + r;
        const bool far = a.q2 && middle_of(a, a.first_block + first + row, a.q_offset, a.n) - middle_of(a, j0 + column, 0, a.n) >= a.band;
        by[r] = (far ? (int)(q2 - q) : 0) + row * a.d;
      }
      for (int i = 0; i < a.d; i += 4) {
        const float4 k = *(const float4*)(keys + column * pitch + i);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float4 x = *(const float4*)(q + by[r] + i);
          sum[r] += x.x * k.x + x.y * k.y + x.z * k.z + x.w * k.w;
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) logits[(quarter * 4 + r) * a.blocks + j0 + column] = capped(a, sum[r] * a.scale);
    }
    __syncthreads();
  }
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  for (int r = warp; r < rows; r += 8) {
    const int i = a.first_block + first + r;
    const float* x = logits + r * a.blocks;
    float* out = a.block_p + (long long)head * tiles_before(a, a.q_blocks) + tiles_before(a, first + r);
    const int low = first_visible(a, i);
    float top = NEG_INF, sum = 0.0f;
    for (int j = low + lane; j <= i; j += 32) top = fmaxf(top, x[j]);
    for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    for (int j = low + lane; j <= i; j += 32) sum += __expf(x[j] - top);
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    for (int j = lane; j <= i; j += 32) out[j] = j < low ? 0.0f : __expf(x[j] - top) / sum;
  }
}

// The values of search y: two per head, keys and distances; a query-aware head has one, its block scores.
__device__ __forceinline__ const float* values_of(const IndexArgs& a, int y, long long* count, double* target) {
  const int head = y >> 1, slash = y & 1;
  *count = a.n;
  *target = a.gamma[head % a.q_heads];
  if (!a.aware[head]) return (slash ? a.slash : a.vertical) + (long long)head * a.n;
  *count = slash ? 0 : tiles_before(a, a.q_blocks);
  *target = (double)a.gamma[head % a.q_heads] * a.q_blocks;
  return a.block_p + (long long)head * tiles_before(a, a.q_blocks);
}

// The sum of `count` values that share the bits above `shift` and whose bits below it add up to `low`.
__device__ __forceinline__ double bin_sum(u32 prefix_bits, u32 count, u64 low) {
  const u32 exponent = prefix_bits >> 23;
  const double ulp = exponent ? __longlong_as_double((long long)(exponent - 150 + 1023) << 52)
                              : __longlong_as_double((long long)(1 - 150 + 1023) << 52);
  return (double)count * (double)__uint_as_float(prefix_bits) + (double)low * ulp;
}

// Sums of the mass at the distances of the blocks of one chunk, by block offset. 256 threads.
__device__ __forceinline__ void pool_slash(const IndexArgs& a, int head) {
  const int lane = threadIdx.x & 31, per = kChunk / a.block;
  const float* slash = a.slash + (long long)head * a.n;
  for (int j = per * blockIdx.x + threadIdx.x / 32; j < min(a.blocks, per * ((int)blockIdx.x + 1)); j += 8) {
    // Released: distances are pooled in blocks that start at the largest one.
    const int first = a.rule ? j * a.block : a.n - (a.blocks - j) * a.block;
    float sum = 0.0f;
    for (int i = lane; i < a.block; i += 32)
      if (first + i >= 0 && first + i < a.n) sum += slash[first + i];
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    if (lane == 0) a.s_pool[(long long)head * a.blocks + j] = sum;
  }
}

// Histogram of one level, and, by the last block of a search, the bin where the descending sum passes the target.
template <int level> __device__ __forceinline__ void histogram(const IndexArgs& a) {
  constexpr int bins = level == 0 ? kBins1 : kBins2, shift = level == 0 ? 20 : level == 1 ? 10 : 0;
  __shared__ u32 count_of[bins], low_of[bins];
  const int y = blockIdx.y;
  if (level == 0 && (y & 1)) pool_slash(a, y >> 1);
  long long count;
  double target;
  const float* x = values_of(a, y, &count, &target);
  const long long first = (long long)blockIdx.x * kChunk;
  const u32 chunks = (u32)((count + kChunk - 1) / kChunk);
  if (first >= count) return;
  IndexState* state = a.state + y;
  const u32 prefix = state->prefix;  // bits above the level, found by the level before
  if (level > 0 && state->complete) return;
  for (int i = threadIdx.x; i < bins; i += 256) { count_of[i] = 0; low_of[i] = 0; }
  __syncthreads();
  const long long end = min(first + kChunk, count);
#pragma unroll 4
  for (long long i = first + threadIdx.x; i < end; i += 256) {
    const u32 bits = __float_as_uint(x[i]);
    const u32 bin = (bits >> shift) & (bins - 1);
    if (level == 0 || (bits >> (level == 1 ? 20 : 10)) == prefix) {
      atomicAdd(&count_of[bin], 1u);
      if (shift) atomicAdd(&low_of[bin], bits & ((1u << shift) - 1));
    }
  }
  __syncthreads();
  u32* counts = a.hist_count + ((long long)level * 2 * heads_of(a) + y) * kBins1;
  u64* lows = a.hist_low + ((long long)level * 2 * heads_of(a) + y) * kBins1;
  for (int i = threadIdx.x; i < bins; i += 256)
    if (count_of[i]) {
      atomicAdd(counts + i, count_of[i]);
      if (shift) atomicAdd(lows + i, (u64)low_of[i]);
    }
  if (!last_block(&state->done, chunks)) return;
  // Each thread owns a run of bins, from the largest value down.
  constexpr int run = bins / 256;
  __shared__ double sums[256];
  __shared__ u32 counted[256];
  double run_sum[run], total = 0.0;
  u32 run_count[run], total_count = 0;
  for (int i = 0; i < run; ++i) {
    const u32 bin = bins - 1 - (threadIdx.x * run + i);
    const u32 c = __ldcg(counts + bin);
    run_count[i] = c;
    run_sum[i] = c ? bin_sum(level == 0 ? bin << 20 : level == 1 ? prefix << 20 | bin << 10 : prefix << 10 | bin, c, shift ? __ldcg(lows + bin) : 0) : 0.0;
    total += run_sum[i];
    total_count += c;
  }
  sums[threadIdx.x] = total;
  counted[threadIdx.x] = total_count;
  __syncthreads();
  if (threadIdx.x == 0) {
    double above = state->above_sum;
    u32 c = state->above_count;
    for (int i = 0; i < 256; ++i) {
      const double s = sums[i];
      const u32 n = counted[i];
      sums[i] = above;
      counted[i] = c;
      above += s;
      c += n;
    }
    if (above <= target) {  // rounding kept the whole sum below the target: everything counts
      state->complete = 1;
      state->above_count = c;
      state->prefix = 0;
    }
  }
  __syncthreads();
  if (state->complete) return;
  double above = sums[threadIdx.x];
  u32 c = counted[threadIdx.x];
  for (int i = 0; i < run; ++i) {
    if (above <= target && above + run_sum[i] > target) {
      const u32 bin = bins - 1 - (threadIdx.x * run + i);
      state->above_sum = above;
      state->above_count = c;
      state->prefix = level == 0 ? bin : prefix << 10 | bin;
      if (level == 2) {
        // Equal values: as many of them as fit count; as blocks they are kept or dropped together.
        const double x = __uint_as_float(state->prefix);
        state->above_count = c + (u32)((target - above) / x);
      }
    }
    above += run_sum[i];
    c += run_count[i];
  }
}

// 5, 6, 7. Grid (ceil(longest / 4096), 2 * heads), 256 threads.
extern "C" __global__ void __launch_bounds__(256) flexindex_level0(const __grid_constant__ IndexArgs a) { histogram<0>(a); }
extern "C" __global__ void __launch_bounds__(256) flexindex_level1(const __grid_constant__ IndexArgs a) { histogram<1>(a); }
extern "C" __global__ void __launch_bounds__(256) flexindex_level2(const __grid_constant__ IndexArgs a) { histogram<2>(a); }

// The bits of the k-th largest of n non-negative values (k >= 1), by bisection over the bits.
__device__ __forceinline__ u32 kth_largest(const u32* x, int n, int k) {
  u32 found = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const u32 candidate = found | 1u << bit;
    int count = 0;
    for (int i0 = 0; i0 < n; i0 += blockDim.x) {
      const int i = i0 + threadIdx.x;
      count += __syncthreads_count(i < n && x[i] >= candidate);
    }
    if (count >= k) found = candidate;
  }
  return found;
}

// The same of many values in device memory.
__device__ __forceinline__ u32 kth_largest_of(const float* x, int n, int k, float* scratch) {
  u32 found = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const u32 candidate = found | 1u << bit;
    int count = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += blockDim.x) count += __float_as_uint(x[i]) >= candidate;
    if (block_sum((float)count, scratch) >= k) found = candidate;  // exact up to 2^24 values
  }
  return found;
}

// The paper's rule: the fewest single columns, or distances, whose mass reaches gamma, within the budgets, and every block
// that they touch; of equals the lower. words: `words` of zeros in shared memory. 1024 threads.
__device__ __forceinline__ void choose_by_token(const IndexArgs& a, int head, int slash, u32* words) {
  __shared__ float scratch[33];
  __shared__ int tied_before[33];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const float* x = (slash ? a.slash : a.vertical) + (long long)head * a.n;
  const IndexState& state = a.state[2 * head + slash];
  const int needed = (int)state.above_count + 1;
  const int keep = (int)min(min(max((long long)needed, (long long)a.min_blocks * a.block), (long long)a.max_blocks * a.block), (long long)a.n);
  const u32 threshold = keep == needed && !state.complete ? state.prefix : kth_largest_of(x, a.n, keep, scratch);
  int above = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < a.n; i += blockDim.x) above += __float_as_uint(x[i]) > threshold;
  int ties = keep - (int)block_sum((float)above, scratch);
  auto mark = [&](int block) {
    if (block >= a.blocks) return;
    const int at = slash ? a.blocks - 1 - block : block;
    atomicOr(words + at / 32, 1u << (at & 31));
  };
  if (threadIdx.x == 0) mark(0);
  for (int base = 0; base < a.n; base += 1024) {
    const int i = base + (int)threadIdx.x;
    const u32 bits = i < a.n ? __float_as_uint(x[i]) : 0;
    const bool tie = i < a.n && bits == threshold;
    const u32 tied = __ballot_sync(~0u, tie);
    __syncthreads();
    if (lane == 0) tied_before[warp] = __popc(tied);
    __syncthreads();
    int before = __popc(tied & ((1u << lane) - 1)), all = 0;
    for (int w = 0; w < 32; ++w) {
      if (w < warp) before += tied_before[w];
      all += tied_before[w];
    }
    const u32 taken = __ballot_sync(~0u, i < a.n && (bits > threshold || (tie && before < ties)));
    ties -= all;
    if (lane == 0 && taken) {
      const int token = base + 32 * warp;  // the warp's are of one block
      mark(token / a.block);
      // A distance that is no whole number of blocks meets two tiles of each row.
      if (slash && (taken & (token % a.block ? ~0u : ~1u))) mark(token / a.block + 1);
    }
  }
}

// 8. The best blocks by column and by distance. Grid (2, heads), 1024 threads, shared: blocks words.
extern "C" __global__ void __launch_bounds__(1024) flexindex_choose(const __grid_constant__ IndexArgs a) {
  extern __shared__ u32 bits[];
  const int slash = blockIdx.x, head = blockIdx.y;
  u32* out = slash ? a.s_bits + (long long)head * (a.words + 1) : a.v_bits + (long long)head * a.words;
  if (a.rule == 2 && !a.aware[head]) {
    for (int i = threadIdx.x; i < a.words + slash; i += blockDim.x) bits[i] = 0;
    __syncthreads();
    choose_by_token(a, head, slash, bits);
    __syncthreads();
    for (int i = threadIdx.x; i < a.words + slash; i += blockDim.x) out[i] = bits[i];
    return;
  }
  int keep = a.rule == 2 ? 1 : a.min_blocks;
  if (!a.aware[head]) {
    const int tokens = (int)a.state[2 * head + slash].above_count + 1;
    keep = tokens / (a.rule ? a.block : 128) + 1;  // the released code divides by 128 whatever the block is
    keep = min(max(keep, a.min_blocks), min(a.max_blocks, a.blocks));
  }
  keep = min(max(keep, 1), a.blocks);
  const float* pool = (slash ? a.s_pool : a.v_pool) + (long long)head * a.blocks;
  for (int i = threadIdx.x; i < a.blocks; i += blockDim.x) bits[i] = i ? __float_as_uint(pool[i]) : 0x7f800000u;  // 0 is always kept
  __syncthreads();
  const u32 threshold = kth_largest(bits, a.blocks, keep);
  if (threadIdx.x >= 32) return;
  int above = 0;
  for (int i = threadIdx.x; i < a.blocks; i += 32) above += bits[i] > threshold;
  for (int o = 16; o; o >>= 1) above += __shfl_xor_sync(~0u, above, o);
  int ties = keep - above;  // ties go to the first in storage order: the lower column, the larger distance
  for (int w = 0; w < a.words + slash; ++w) {
    const int at = w * 32 + threadIdx.x, i = slash ? a.blocks - 1 - at : at;
    const u32 x = at < a.blocks ? bits[i] : 0;
    const bool tie = at < a.blocks && x == threshold;
    const u32 tied = __ballot_sync(~0u, tie);
    const bool take = (at < a.blocks && x > threshold) || (tie && __popc(tied & ((1u << threadIdx.x) - 1)) < ties);
    const u32 taken = __ballot_sync(~0u, take);
    ties -= __popc(tied);
    if (threadIdx.x == 0) out[w] = taken;
  }
}

// The kept columns of query block i, counted from position 0, as bits: a lane has columns [32 w, 32 w + 32) of its word w.
struct RowMask {
  const u32 *v_bits, *s_bits;
  const float* p;  // null unless query-aware
  u32 threshold;
  bool inclusive;
  int blocks, low;  // low: the first key block that is seen

  __device__ __forceinline__ RowMask(const IndexArgs& a, int head, int i) {
    v_bits = a.v_bits + (long long)head * a.words;
    s_bits = a.s_bits + (long long)head * (a.words + 1);
    blocks = a.blocks;
    low = first_visible(a, i);
    p = nullptr;
    if (!a.aware[head]) return;
    p = a.block_p + (long long)head * tiles_before(a, a.q_blocks) + tiles_before(a, i - a.first_block);
    threshold = a.state[2 * head].prefix;
    inclusive = a.state[2 * head].complete != 0 || a.rule == 2;  // the paper keeps the tile that crosses gamma
  }
  // Called by the whole warp with w = w0 + lane.
  __device__ __forceinline__ u32 word(int i, int w0) const {
    const int lane = threadIdx.x & 31, w = w0 + lane, end = i / 32;
    u32 x = 0;
    if (w <= end) {
      // s_bits are stored from the largest offset down: column j of row i is bit blocks - 1 - i + j.
      const int at = blocks - 1 - i + 32 * w;
      x = v_bits[w] | __funnelshift_r(s_bits[at >> 5], s_bits[(at >> 5) + 1], at & 31);
      if (w == end && (i & 31) < 31) x &= (2u << (i & 31)) - 1;
    }
    if (p)
      for (int t = 0; t < 32 && w0 + t <= end; ++t) {
        const int j = (w0 + t) * 32 + lane;
        const u32 bits = j <= i ? __float_as_uint(p[j]) : 0;
        const u32 kept = __ballot_sync(~0u, j <= i && (inclusive ? bits >= threshold : bits > threshold));
        if (t == lane) x |= kept;
      }
    const int hidden = low - 32 * w;  // columns of the word
    return hidden <= 0 ? x : hidden >= 32 ? 0 : x & (~0u << hidden);
  }
};

// 9. Kept blocks of each row, then their prefix sums by the last block. Grid ceil(heads * q_blocks / 32), 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) flexindex_count(const __grid_constant__ IndexArgs a) {
  const int rows = heads_of(a) * a.q_blocks, row = blockIdx.x * 32 + threadIdx.x / 32;
  if (row < rows) {
    const int head = row / a.q_blocks, i = a.first_block + row % a.q_blocks;
    const RowMask mask(a, head, i);
    int count = 0;
    for (int w = 0; w <= i / 32; w += 32) count += __popc(mask.word(i, w));
    for (int o = 16; o; o >>= 1) count += __shfl_xor_sync(~0u, count, o);
    if ((threadIdx.x & 31) == 0) a.row_ptr[row + 1] = count;
  }
  if (!last_block(a.done + heads_of(a), gridDim.x)) return;
  prefix_rows(a.row_ptr, rows);
}

// 10. The columns. Grid as above.
extern "C" __global__ void __launch_bounds__(1024) flexindex_fill(const __grid_constant__ IndexArgs a) {
  const int rows = heads_of(a) * a.q_blocks, row = blockIdx.x * 32 + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (row >= rows) return;
  const int head = row / a.q_blocks, i = a.first_block + row % a.q_blocks;
  const RowMask mask(a, head, i);
  int at = a.row_ptr[row];
  for (int w = 0; w <= i / 32; w += 32) {
    u32 x = mask.word(i, w);
    at = store_columns(x, (w + lane) * 32, a.cols, at);
  }
}
