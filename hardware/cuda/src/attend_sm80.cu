// The attention of attend_sm90.cu for any device from sm_80: mma.sync and cp.async instead of wgmma and TMA.
//
// A block of eight warps owns one query block, 16 rows a warp; K and V come in steps of 64 keys through two stages. The
// same masks, features, error and shapes as attend_sm90.cu; the arithmetic of the softmax is the same code.
// Versions (H100, 32k, 10 % mask): 1 two stages of 64 keys, 202 TFLOP/s; 2 sequences, blocks by position, any head_dim, same.
//
// Macros: HEAD_DIM (64, 128), FP16, BANDS, WINDOW, SOFTCAP, SINKS.
#include "attend.cuh"
#include "mma.cuh"

constexpr int kKeys = 64;                          // keys of a step
constexpr int kQueryBytes = kTile * kRowBytes;
constexpr int kStepBytes = kKeys * kRowBytes;      // of K, and of V
constexpr int kOut = HEAD_DIM / 2;

// Rows [first, first + rows) of x, zeros before `begin`, from `end` on and from column head_dim on.
__device__ __forceinline__ void copy_rows(u32 to, const void* x, long long base, long long stride, int first, int rows, int begin, int end, int head_dim) {
  for (int i = threadIdx.x; i < rows * kChunks; i += 256) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = first + row >= begin && first + row < end && chunk * 8 < head_dim;
    copy_async(chunk_at(to, row, chunk), (const char*)x + 2 * (base + (valid ? (first + row) * stride + 8 * chunk : 0)), valid);
  }
}

// S = Q K^T for the warp's 16 rows and 64 keys.
__device__ __forceinline__ void scores(float (&s)[32], u32 q_rows, u32 k) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = 0.0f;
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk) {
    u32 q[4];
    ldmatrix_x4(chunk_at(q_rows, (lane & 7) + ((lane >> 3) & 1) * 8, 2 * kk + (lane >> 4)), q);
#pragma unroll
    for (int t = 0; t < 4; ++t) {  // 16 keys
      u32 b[4];
      ldmatrix_x4(chunk_at(k, 16 * t + (lane & 7) + (lane >> 4) * 8, 2 * kk + ((lane >> 3) & 1)), b);
      mma(s + 8 * t, q, b[0], b[1]);
      mma(s + 8 * t + 4, q, b[2], b[3]);
    }
  }
}

// O += P V.
__device__ __forceinline__ void accumulate(float (&o)[kOut], const float (&s)[32], u32 v) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int kk = 0; kk < 4; ++kk) {  // 16 keys
    u32 p[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) p[j] = pack(s[8 * kk + 2 * j], s[8 * kk + 2 * j + 1]);
#pragma unroll
    for (int t = 0; t < HEAD_DIM / 16; ++t) {
      u32 b[4];
      ldmatrix_transposed_x4(chunk_at(v, 16 * kk + (lane & 15), 2 * t + (lane >> 4)), b);
      mma(o + 8 * t, p, b[0], b[1]);
      mma(o + 8 * t + 4, p, b[2], b[3]);
    }
  }
}

// Steps walks the tiles of an item from the last column to the first, in halves of 64 keys, once for each rotation that
// has keys there.
struct Steps {
  const AttendArgs& a;
  const Work& w;
  int index, half, column;
  bool far;

  __device__ __forceinline__ Steps(const AttendArgs& args, const Work& work) : a(args), w(work), index(-1), half(0), column(0), far(BAND_COUNT == 2) {}
  __device__ __forceinline__ int key() const { return column * kTile + half * kKeys; }
  __device__ __forceinline__ bool next() {
    do {
      if (BAND_COUNT == 2 && !far) {
        far = true;
      } else {
        far = false;
        if (half == 0) {
          if (++index == w.count) return false;
          column = a.row_ptr ? a.cols[w.begin + w.count - 1 - index] : w.begin + w.count - 1 - index;
        }
        half ^= 1;
      }
    } while (!visible());
    return true;
  }
  // Whether any pair of the step is in its band and visible.
  __device__ __forceinline__ bool visible() const {
    const int first = w.seq.q_offset + w.block * kTile, last = first + kTile - 1;
    if (key() > last || key() >= w.seq.k_len) return false;
#ifdef BANDS
    return far ? last - key() >= a.band : first - (key() + kKeys - 1) < a.band;
#else
    return true;
#endif
  }
};

extern "C" __global__ void __launch_bounds__(256, 1) attend_plain(const __grid_constant__ AttendPlainArgs x) {
  extern __shared__ __align__(128) char memory[];
  const AttendArgs& a = x.a;
  const u32 queries = shared_address(memory), ring = queries + BAND_COUNT * kQueryBytes;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const Work w = decode(a, blockIdx.x);
  if (w.block < 0) return;
  const int kv_head = w.head / (a.q_heads / a.kv_heads), box = w.seq.box, first = w.block * kTile;
  const int q_end = w.seq.q_row + w.seq.q_len, k_end = w.seq.k_row + w.seq.k_len;
  const long long k_base = box * x.k_batch + kv_head * x.k_head, v_base = box * x.v_batch + kv_head * x.v_head;
  copy_rows(queries, x.q, box * x.q_batch + w.head * x.q_head, x.q_row, w.seq.q_row + first, kTile, w.seq.q_row + w.seq.skip, q_end, a.head_dim);
#ifdef BANDS
  copy_rows(queries + kQueryBytes, x.q2, box * x.q2_batch + w.head * x.q2_head, x.q2_row, w.seq.q_row + first, kTile, w.seq.q_row + w.seq.skip, q_end, a.head_dim);
#endif
#ifdef SOFTCAP
  const float scale_log2 = 1.44269504f;
#else
  const float scale_log2 = a.scale * 1.44269504f;
#endif
  float o[kOut], s[32], rescale[2];
#pragma unroll
  for (int i = 0; i < kOut; ++i) o[i] = 0.0f;
  RowState st = {{NEG_INF, NEG_INF}, {0.0f, 0.0f}};
  const int row = first + warp * 16 + lane / 4, first_query = w.seq.q_offset + first + (warp / 4) * 64;

  auto load = [&](const Steps& step, int slot) {
    const u32 to = ring + slot * 2 * kStepBytes;
    copy_rows(to, x.k, k_base, x.k_row, w.seq.k_row + step.key(), kKeys, w.seq.k_row, k_end, a.head_dim);
    copy_rows(to + kStepBytes, x.v, v_base, x.v_row, w.seq.k_row + step.key(), kKeys, w.seq.k_row, k_end, a.head_dim);
  };
  Steps step(a, w), ahead(a, w);
  bool more = ahead.next();
  if (more) load(ahead, 0);
  copy_commit();
  for (int slot = 0; step.next(); slot ^= 1) {
    more = ahead.next();
    if (more) load(ahead, slot ^ 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const u32 k = ring + slot * 2 * kStepBytes;
    scores(s, queries + (step.far && BAND_COUNT == 2 ? kQueryBytes : 0) + warp * 16 * kRowBytes, k);
#ifdef SOFTCAP
    cap_scores(s, a);
#endif
    const bool far = BAND_COUNT == 2 && step.far;
    if (needs_mask<BAND_COUNT == 2>(a, first_query, w.seq.k_len, step.key(), kKeys, far))
      mask_scores(s, a, w.seq.q_offset + row, w.seq.k_len, step.key(), BAND_COUNT == 2 && !far, far, true);
    if (softmax<false>(s, st, rescale, scale_log2)) {
#pragma unroll
      for (int i = 0; i < kOut; ++i) o[i] *= rescale[(i >> 1) & 1];
    }
    accumulate(o, s, k + kStepBytes);
    __syncthreads();
  }
  copy_wait<0>();
  float inv[2];
  finish_rows(a, w.seq, w.head, row, st, scale_log2, inv);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r < w.seq.skip || row + 8 * r >= w.seq.q_len) continue;
    u32* out = (u32*)((char*)a.out + 2 * (box * a.out_batch + w.head * a.out_head + (long long)(w.seq.q_row + row + 8 * r) * a.out_row));
#pragma unroll
    for (int t = 0; t < HEAD_DIM / 8; ++t)
      if (8 * t < a.head_dim) out[4 * t + (lane & 3)] = pack(o[4 * t + 2 * r] * inv[r], o[4 * t + 2 * r + 1] * inv[r]);
  }
}
