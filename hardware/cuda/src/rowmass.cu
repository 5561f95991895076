// What strategies that probe choose by: the exact softmax of chosen query rows, summed over key blocks of 128, and means of
// blocks in float32. sm_80 and later, any lengths.
//
// A block of threads takes 128 rows of a set, 16 a warp, whose operands stay in registers, and walks over key blocks in two
// stages of cp.async; each row's log-sum-exp over a block is stored, and a second kernel makes shares of them.
//
// Macros: HEAD_DIM (64, 128), FP16.
#include "mma.cuh"
#include "rowmass_args.h"

constexpr int kStageBytes = kTile * kRowBytes;
constexpr int kSteps = HEAD_DIM / 16;

__device__ __forceinline__ void load_rows(u32 (&q)[kSteps][4], const void* x, const long long (&base)[2], const int (&row)[2], int head_dim) {
#pragma unroll
  for (int kk = 0; kk < kSteps; ++kk)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = j & 1, c = 16 * kk + 8 * (j >> 1) + 2 * (threadIdx.x & 3);
      q[kk][j] = row[r] >= 0 && c < head_dim ? *(const u32*)((const char*)x + 2 * (base[r] + c)) : 0u;
    }
}

// Scores of the warp's 16 rows against 128 keys.
__device__ __forceinline__ void product(float (&s)[64], const u32 (&q)[kSteps][4], u32 k) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 64; ++i) s[i] = 0.0f;
#pragma unroll
  for (int kk = 0; kk < kSteps; ++kk)
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      u32 b[4];
      ldmatrix_x4(chunk_at(k, 16 * t + (lane & 7) + (lane >> 4) * 8, 2 * kk + ((lane >> 3) & 1)), b);
      mma(s + 8 * t, q[kk], b[0], b[1]);
      mma(s + 8 * t + 4, q[kk], b[2], b[3]);
    }
}

// Grid (ceil(count / 128), ceil(k_blocks / chunk), groups), 256 threads, shared: two stages.
extern "C" __global__ void __launch_bounds__(256, 1) rowmass_scores(const __grid_constant__ RowMassArgs a) {
  extern __shared__ __align__(128) char memory[];
  __shared__ int highest;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, group = blockIdx.z;
  const int batch = a.sets[group] / a.q_heads, head = a.sets[group] % a.q_heads, kv_head = head / (a.q_heads / a.kv_heads);
  int index[2], row[2], low = 0x7fffffff, high = -1;  // positions of the warp's rows: lowest and highest
  long long base[2], base2[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    index[r] = blockIdx.x * kTile + warp * 16 + lane / 4 + 8 * r;
    row[r] = index[r] < a.count ? a.rows[(long long)group * a.count + index[r]] : -1;
    base[r] = batch * a.q_batch + head * a.q_head + row[r] * a.q_row;
    base2[r] = batch * a.q2_batch + head * a.q2_head + row[r] * a.q2_row;
    if (row[r] >= 0) {
      low = min(low, a.q_offset + row[r]);
      high = max(high, a.q_offset + row[r]);
    }
  }
  low = __reduce_min_sync(~0u, low);
  high = __reduce_max_sync(~0u, high);
  if (threadIdx.x == 0) highest = -1;
  __syncthreads();
  if (lane == 0) atomicMax(&highest, high);
  __syncthreads();
  u32 q[kSteps][4], q2[kSteps][4];
  load_rows(q, a.q, base, row, a.head_dim);
  if (a.q2) load_rows(q2, a.q2, base2, row, a.head_dim);

  const int from = blockIdx.y * a.chunk, to = min(a.k_blocks, from + a.chunk);
  const int end = highest < 0 ? from : a.full ? to : min(to, highest / kTile + 1);  // blocks from here on are seen by no row
  const u32 stages = shared_address(memory);
  const char* keys = (const char*)a.k + 2 * (batch * a.k_batch + kv_head * a.k_head);
  auto load = [&](int j) {
    if (j < end)
      for (int i = threadIdx.x; i < kTile * kChunks; i += 256) {
        const int r = i / kChunks, chunk = i % kChunks, key = j * kTile + r;
        const bool valid = key < a.k_len && chunk * 8 < a.head_dim;
        copy_async(chunk_at(stages + (j & 1) * kStageBytes, r, chunk), keys + (valid ? 2 * (key * a.k_row + 8 * chunk) : 0), valid);
      }
    copy_commit();
  };
  load(from);
  for (int j = from; j < to; ++j) {
    load(j + 1);
    copy_wait<1>();
    __syncthreads();
    float top[2] = {NEG_INF, NEG_INF}, sum[2] = {0.0f, 0.0f};
    const int key0 = j * kTile;
    if (j < end && high >= 0 && (a.full || key0 <= high)) {  // of the whole warp
      const u32 k = stages + (j & 1) * kStageBytes;
      float s[64];
      if (a.q2 && low - (key0 + kTile - 1) >= a.band) {
        product(s, q2, k);
      } else {
        product(s, q, k);
        if (a.q2 && high - key0 >= a.band) {  // the border crosses the block
          float far[64];
          product(far, q2, k);
#pragma unroll
          for (int i = 0; i < 64; ++i)
            if (a.q_offset + row[(i >> 1) & 1] - (key0 + (i / 4) * 8 + 2 * (lane & 3) + (i & 1)) >= a.band) s[i] = far[i];
        }
      }
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int r = (i >> 1) & 1, key = key0 + (i / 4) * 8 + 2 * (lane & 3) + (i & 1), position = a.q_offset + row[r];
        float x = s[i] * a.scale;
        if (a.softcap > 0.0f) x = a.softcap * tanhf(x / a.softcap);
        const bool seen = row[r] >= 0 && key < a.k_len && (a.full || key <= position) && (a.window == 0 || key > position - a.window);
        s[i] = seen ? x * 1.44269504f : NEG_INF;
        top[r] = fmaxf(top[r], s[i]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      }
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int r = (i >> 1) & 1;
        sum[r] += top[r] > NEG_INF ? exp2_approx(s[i] - top[r]) : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
      }
    }
    if ((lane & 3) == 0)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (index[r] < a.count)
          a.mass[((long long)group * a.count + index[r]) * a.k_blocks + j] = sum[r] > 0.0f ? top[r] + log2_approx(sum[r]) : NEG_INF;
    __syncthreads();  // the stage is free
  }
  copy_wait<0>();
}

// A warp for each row: grid ceil(groups * count / 8), 256 threads.
extern "C" __global__ void __launch_bounds__(256) rowmass_shares(const __grid_constant__ RowMassArgs a) {
  const long long row = (long long)blockIdx.x * 8 + threadIdx.x / 32;
  const int lane = threadIdx.x & 31;
  if (row >= (long long)a.groups * a.count) return;
  float* x = a.mass + row * a.k_blocks;
  float top = NEG_INF, sum = 0.0f;
  for (int j = lane; j < a.k_blocks; j += 32) top = fmaxf(top, x[j]);
  for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  if (top > NEG_INF)
    for (int j = lane; j < a.k_blocks; j += 32) sum += exp2f(x[j] - top);
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  const float lse = top > NEG_INF ? top + log2f(sum) : NEG_INF;
  for (int j = lane; j < a.k_blocks; j += 32) x[j] = top > NEG_INF ? exp2f(x[j] - lse) : 0.0f;
  if (lane == 0) a.lse[row] = lse * 0.69314718f;
}

// Means of the rows of each block. Grid (blocks, batch * heads), 256 threads.
extern "C" __global__ void __launch_bounds__(256) pool_blocks(const __grid_constant__ PoolArgs a) {
  __shared__ float2 scratch[256];
  const int pairs = a.head_dim / 2, pair = threadIdx.x % pairs, group = threadIdx.x / pairs, groups = 256 / pairs;
  const int at = (a.first + (int)blockIdx.x) * a.block - a.offset;  // row of the block's first token
  const int begin = max(0, at), end = min(a.rows, at + a.block);
  const u32* x = (const u32*)a.x + ((blockIdx.y / a.heads) * a.batch_stride + (blockIdx.y % a.heads) * a.head_stride) / 2 + pair;
  float2 sum = make_float2(0.0f, 0.0f);
  if (group < groups) {
#pragma unroll 8
    for (int r = begin + group; r < end; r += groups) {
      const u32 y = x[r * a.row_stride / 2];
      sum.x += unpack_lo(y);
      sum.y += unpack_hi(y);
    }
    scratch[group * pairs + pair] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= pairs) return;
  for (int g = 1; g < groups; ++g) {
    sum.x += scratch[g * pairs + pair].x;
    sum.y += scratch[g * pairs + pair].y;
  }
  float* mean = a.mean + ((long long)blockIdx.y * a.blocks + blockIdx.x) * a.head_dim + 2 * pair;
  mean[0] = sum.x / (end - begin);
  mean[1] = sum.y / (end - begin);
}
