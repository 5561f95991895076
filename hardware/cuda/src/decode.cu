// Split-K attention for few queries over a long cache, sm_80 and later: out and LSE of every visible key.
//
// A block owns 16 rows (the query heads of one key head times their queries) and one of `splits` runs of keys. Its warps
// need nothing of each other until the end: each streams its own steps of keys through its own three-stage ring of
// cp.async and keeps its own softmax, so that memory never waits at a barrier. Partial results are joined by the last
// block of a group, in one launch. The floor is reading K and V once.
//
// PROBE compiles the coverage certificate instead: 64 chosen rows of one query head, K only, and from the LSE that the
// attention kernel wrote for them the share of the dense softmax that its tiles kept.
//
// Shapes: head_dim up to HEAD_DIM in steps of 8, any lengths, q_heads a multiple of kv_heads, 16-byte aligned rows.
// Versions (H100, 8 key heads, 8k / 32k / 128k keys; more in docs/decisions/cuda-kernel.md):
//   1 one ring for each warp, 16 keys a step at head_dim 128, last block joins                    21.2 / 55.5 / 184 us
//   2 the last block reads the splits' rows by lanes; the first copies start before q is read     19.8 / 53 / 182
//   3 only rows that exist go through shared memory                                               18.5 / 52 / 183
//
// Macros: HEAD_DIM (64, 128), FP16, BANDS, WINDOW, SOFTCAP, SINKS, PROBE.
#include "attend.cuh"
#include "decode_args.h"
#include "grid.cuh"
#include "mma.cuh"

constexpr int kStages = 3;
constexpr int kKeys = 2048 / HEAD_DIM;               // keys of a step: 4 KB of K, and of V
constexpr int kScores = kKeys / 2;                   // of a thread, for 16 rows
constexpr int kStepBytes = kKeys * kRowBytes;        // of K, and of V
#ifdef PROBE
constexpr int kRowTiles = 4 / BAND_COUNT;
constexpr int kStageBytes = kStepBytes;
#else
constexpr int kRowTiles = 1;
constexpr int kStageBytes = 2 * kStepBytes;
constexpr int kOut = HEAD_DIM / 2;                   // accumulator registers of a thread
#endif
constexpr int kRows = 16 * kRowTiles;

// Group is what a block works on.
struct Group {
  Sequence seq;
  int index, batch, head, kv_head, first, rows;  // rows [first, first + kRows) of `rows`; head: of a probe
};

// The query row and the query head of a row of a group.
__device__ __forceinline__ void row_of(const DecodeArgs& d, const Group& g, int r, int& row, int& head) {
  row = -1;
  head = g.head;
  if (r >= g.rows) return;
#ifdef PROBE
  row = d.probe_rows[(long long)g.index * d.probes + r];
  if (row >= g.seq.q_len) row = -1;
#else
  const int members = d.x.a.q_heads / d.x.a.kv_heads;
  head = g.kv_head * members + r % members;
  row = r / members;
#endif
}

__device__ __forceinline__ void load_fragments(u32 (&q)[HEAD_DIM / 16][4], const void* x, const long long (&base)[2], const bool (&valid)[2],
                                               int head_dim) {
  const int column = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = j & 1, c = 16 * kk + 8 * (j >> 1) + column;
      q[kk][j] = valid[r] && c < head_dim ? *(const u32*)((const char*)x + 2 * (base[r] + c)) : 0u;
    }
}

// Copies keys [key, key + kKeys) of x; zeros from `end` on. x points at the lane's chunk of row 0.
__device__ __forceinline__ void copy_step(u32 to, const char* x, long long row_bytes, int key, int end, bool column) {
  constexpr int at_once = 32 / kChunks;
  const int lane = threadIdx.x & 31, chunk = lane % kChunks;
#pragma unroll
  for (int i = 0; i < kKeys / at_once; ++i) {
    const int row = i * at_once + lane / kChunks;
    const bool valid = column && key + row < end;
    copy_async(chunk_at(to, row, chunk), valid ? x + (long long)(key + row) * row_bytes : x, valid);
  }
}

__device__ __forceinline__ void product(float (&s)[kRowTiles][kScores], const u32 (&q)[kRowTiles][HEAD_DIM / 16][4], u32 k) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[m][i] = 0.0f;
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk)
#pragma unroll
    for (int t = 0; t < kKeys / 16; ++t) {
      u32 b[4];
      ldmatrix_x4(chunk_at(k, 16 * t + (lane & 7) + (lane >> 4) * 8, 2 * kk + ((lane >> 3) & 1)), b);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        mma(s[m] + 8 * t, q[m][kk], b[0], b[1]);
        mma(s[m] + 8 * t + 4, q[m][kk], b[2], b[3]);
      }
    }
}

// Drops what a row may not see. position: of the thread's two rows.
__device__ __forceinline__ void mask_step(float (&s)[kScores], const AttendArgs& a, const int (&position)[2], int key0, int end) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const int key = key0 + (i / 4) * 8 + 2 * (threadIdx.x & 3) + (i & 1), at = position[(i >> 1) & 1];
    bool keep = key <= at && key < end;
#ifdef WINDOW
    keep = keep && key > at - a.window;
#endif
    s[i] = keep ? s[i] : NEG_INF;
  }
}

// One step of the online softmax: scores become probabilities; true when the accumulator must be scaled.
__device__ __forceinline__ bool online(float (&s)[kScores], RowState& st, float (&rescale)[2], float scale_log2) {
  bool grew = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = NEG_INF;
#pragma unroll
    for (int t = 0; t < kScores / 4; ++t) top = fmaxf(top, fmaxf(s[4 * t + 2 * r], s[4 * t + 2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const bool grow = (top - st.m[r]) * scale_log2 > 8.0f;  // false for -inf against -inf
    const float m = grow ? top : st.m[r];
    rescale[r] = grow ? exp2_approx((st.m[r] - m) * scale_log2) : 1.0f;
    grew = grew || grow;
    st.m[r] = m;
    const float ref = m == NEG_INF ? 0.0f : m * scale_log2;
    float sum = 0.0f;
#pragma unroll
    for (int t = 0; t < kScores / 4; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * t + 2 * r + e];
        x = exp2_approx(__fmaf_rn(x, scale_log2, -ref));
        sum += x;
      }
    st.l[r] = st.l[r] * rescale[r] + sum;
  }
  return __any_sync(~0u, grew);
}

#ifndef PROBE
__device__ __forceinline__ void accumulate(float (&o)[kOut], const float (&s)[kScores], u32 v) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int kk = 0; kk < kKeys / 16; ++kk) {
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
#endif

// The reference and the sum of a row from `count` of them, pairs `stride` floats apart. By the whole warp, a lane for each.
__device__ __forceinline__ float2 join_rows(const float* pairs, int count, int stride) {
  float top = NEG_INF, sum = 0.0f;
  for (int i = threadIdx.x & 31; i < count; i += 32) {
    const float2 x = __ldcg((const float2*)(pairs + (long long)i * stride));
    const float joint = fmaxf(top, x.x);
    if (joint > NEG_INF) sum = sum * exp2_approx(top - joint) + x.y * exp2_approx(x.x - joint);
    top = joint;
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) {
    const float2 x = make_float2(__shfl_xor_sync(~0u, top, o), __shfl_xor_sync(~0u, sum, o));
    const float joint = fmaxf(top, x.x);
    if (joint > NEG_INF) sum = sum * exp2_approx(top - joint) + x.y * exp2_approx(x.x - joint);
    top = joint;
  }
  return make_float2(top, sum);
}

// Ends a row: its LSE, and what its sums are to be multiplied by. x: reference in log2 units and sum.
__device__ __forceinline__ float finish_row(const DecodeArgs& d, const Group& g, int row, int head, float2 x, bool write) {
  const AttendArgs& a = d.x.a;
  float factor = 1.0f;
#ifdef SINKS
  const float sink = a.sinks[head] * 1.44269504f, joint = fmaxf(x.x, sink);
  factor = exp2_approx(x.x - joint);
  x.y = x.y * factor + exp2_approx(sink - joint);
  x.x = joint;
#endif
  if (write)
    a.lse[g.seq.box * a.lse_batch + head * a.lse_head + g.seq.q_row + row] = x.y > 0.0f ? (x.x + log2_approx(x.y)) * 0.69314718f : NEG_INF;
  return x.y > 0.0f ? factor / x.y : 0.0f;
}

#ifdef PROBE
__device__ __forceinline__ void finish_probe(const DecodeArgs& d, const Group& g, int r, float2 x) {
  const AttendArgs& a = d.x.a;
  int row, head;
  row_of(d, g, r, row, head);
  const long long at = (long long)g.index * d.probes + r;
  const float dense = row >= 0 && x.y > 0.0f ? (x.x + log2_approx(x.y)) * 0.69314718f : NEG_INF;
  float kept = 1.0f;  // the row sees no key: nothing was lost
  if (dense > NEG_INF) {
    kept = exp2_approx((a.lse[g.seq.box * a.lse_batch + head * a.lse_head + g.seq.q_row + row] - dense) * 1.44269504f);
#ifdef SINKS
    kept -= exp2_approx((a.sinks[head] - dense) * 1.44269504f);
#endif
    kept = fminf(fmaxf(kept, 0.0f), 1.0f);
  }
  d.dense[at] = dense;
  d.kept[at] = kept;
}
#endif

// Writes 4 columns of a row of the output.
__device__ __forceinline__ void write_out(const AttendArgs& a, const Group& g, int row, int head, int column, float4 x, float inv) {
  if (column >= a.head_dim) return;
  uint2* out = (uint2*)((char*)a.out + 2 * (g.seq.box * a.out_batch + head * a.out_head + (long long)(g.seq.q_row + row) * a.out_row + column));
  *out = make_uint2(pack(x.x * inv, x.y * inv), pack(x.z * inv, x.w * inv));
}

extern "C" __global__ void __launch_bounds__(256, 1) decode(const __grid_constant__ DecodeArgs d) {
  extern __shared__ __align__(128) char memory[];  // kStages * kStageBytes a warp
  __shared__ float rows_shared[8][kRows][2];
  const AttendArgs& a = d.x.a;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int tile = blockIdx.x % d.row_tiles, split = blockIdx.x / d.row_tiles, members = a.q_heads / a.kv_heads;
  Group g;
  g.index = blockIdx.y;
  g.first = tile * kRows;
#ifdef PROBE
  g.batch = g.index / a.q_heads;
  g.head = g.index % a.q_heads;
  g.kv_head = g.head / members;
  g.seq = sequence_of(a, g.batch);
  g.rows = d.probes;
#else
  g.batch = g.index / a.kv_heads;
  g.kv_head = g.index % a.kv_heads;
  g.head = 0;
  g.seq = sequence_of(a, g.batch);
  g.rows = members * g.seq.q_len;
  if (g.first >= g.rows) return;
#endif
#ifdef SOFTCAP
  const float scale_log2 = 1.44269504f;
#else
  const float scale_log2 = a.scale * 1.44269504f;
#endif

  // The thread's rows.
  int position[kRowTiles][2], low = 0x7fffffff, high = -1;  // positions of the tile's rows: lowest and highest
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int row, head;
      row_of(d, g, g.first + 16 * m + 8 * r + lane / 4, row, head);
      position[m][r] = row >= 0 ? g.seq.q_offset + row : -1;
      if (row >= 0) {
        low = min(low, position[m][r]);
        high = max(high, position[m][r]);
      }
    }
  }
  for (int o = 16; o >= 4; o >>= 1) {
    low = min(low, __shfl_xor_sync(~0u, low, o));
    high = max(high, __shfl_xor_sync(~0u, high, o));
  }
  if (high < 0) low = 0;

  // The keys of this split: a multiple of one step for each.
  int from = 0;
#ifdef WINDOW
  from = max(0, low - a.window + 1) / kKeys * kKeys;
#endif
  const int visible = max(from, min(g.seq.k_len, high + 1));
  const int share = ((visible - from + d.splits - 1) / d.splits + kKeys - 1) / kKeys * kKeys;
  from = min(visible, from + split * share);
  const int end = min(visible, from + share), steps = (end - from + kKeys - 1) / kKeys;

  const u32 ring = shared_address(memory) + warp * kStages * kStageBytes;
  const int chunk = lane % kChunks;
  const bool column = chunk * 8 < a.head_dim;
  const char* keys = (const char*)d.x.k + 2 * (g.seq.box * d.x.k_batch + g.kv_head * d.x.k_head + g.seq.k_row * d.x.k_row + (column ? chunk * 8 : 0));
#ifndef PROBE
  const char* values = (const char*)d.x.v + 2 * (g.seq.box * d.x.v_batch + g.kv_head * d.x.v_head + g.seq.k_row * d.x.v_row + (column ? chunk * 8 : 0));
#endif
  auto load = [&](int step, int slot) {
    if (step < steps) {
      const int key = from + step * kKeys;
      copy_step(ring + slot * kStageBytes, keys, 2 * d.x.k_row, key, end, column);
#ifndef PROBE
      copy_step(ring + slot * kStageBytes + kStepBytes, values, 2 * d.x.v_row, key, end, column);
#endif
    }
    copy_commit();
  };

  // Copies go first: the operands of q arrive behind them.
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(warp + i * warps, i);
  u32 q[BAND_COUNT][kRowTiles][HEAD_DIM / 16][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    long long base[BAND_COUNT][2];
    bool valid[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int row, head;
      row_of(d, g, g.first + 16 * m + 8 * r + lane / 4, row, head);
      valid[r] = row >= 0;
      base[0][r] = g.seq.box * d.x.q_batch + head * d.x.q_head + (long long)(g.seq.q_row + row) * d.x.q_row;
#ifdef BANDS
      base[1][r] = g.seq.box * d.x.q2_batch + head * d.x.q2_head + (long long)(g.seq.q_row + row) * d.x.q2_row;
#endif
    }
    load_fragments(q[0][m], d.x.q, base[0], valid, a.head_dim);
#ifdef BANDS
    load_fragments(q[1][m], d.x.q2, base[1], valid, a.head_dim);
#endif
  }
  float s[kRowTiles][kScores], rescale[2];
  RowState st[kRowTiles];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) st[m] = RowState{{NEG_INF, NEG_INF}, {0.0f, 0.0f}};
#ifndef PROBE
  float o[kOut];
#pragma unroll
  for (int i = 0; i < kOut; ++i) o[i] = 0.0f;
#endif
  int slot = 0;
  for (int step = warp; step < steps; step += warps) {
    copy_wait<kStages - 2>();
    __syncwarp();  // the copies of all lanes are there, and the slot of the step before is free
    const int fill = slot == 0 ? kStages - 1 : slot - 1;
    load(step + (kStages - 1) * warps, fill);
    const u32 k = ring + slot * kStageBytes;
    const int key0 = from + step * kKeys, last = key0 + kKeys - 1;
#ifdef BANDS
    if (high - key0 < a.band) {
      product(s, q[0], k);
    } else {
      product(s, q[1], k);
      if (low - last < a.band) {  // the border of the bands crosses the step
        float near_scores[kRowTiles][kScores];
        product(near_scores, q[0], k);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int i = 0; i < kScores; ++i) {
            const int key = key0 + (i / 4) * 8 + 2 * (lane & 3) + (i & 1);
            if (position[m][(i >> 1) & 1] - key < a.band) s[m][i] = near_scores[m][i];
          }
      }
    }
#else
    product(s, q[0], k);
#endif
    bool need = last > low || last >= end;
#ifdef WINDOW
    need = need || key0 <= high - a.window;
#endif
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#ifdef SOFTCAP
      cap_scores(s[m], a);
#endif
      if (need) mask_step(s[m], a, position[m], key0, end);
      const bool grew = online(s[m], st[m], rescale, scale_log2);
#ifndef PROBE
      if (grew) {
#pragma unroll
        for (int i = 0; i < kOut; ++i) o[i] *= rescale[(i >> 1) & 1];
      }
#endif
    }
#ifndef PROBE
    accumulate(o, s[0], k + kStepBytes);
#endif
    slot = slot == kStages - 1 ? 0 : slot + 1;
  }
  copy_wait<0>();

  // Join the warps.
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float l = st[m].l[r];
      l += __shfl_xor_sync(~0u, l, 1);
      l += __shfl_xor_sync(~0u, l, 2);
      if ((lane & 3) == 0) {
        rows_shared[warp][16 * m + 8 * r + lane / 4][0] = st[m].m[r] * scale_log2;
        rows_shared[warp][16 * m + 8 * r + lane / 4][1] = l;
      }
    }
  __syncthreads();  // the rings are free too
  const int rows = min(kRows, g.rows - g.first);
  const long long part = ((long long)g.index * d.row_tiles + tile) * d.splits + split;
  float* part_rows = d.partial_rows + part * kRows * 2;
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    float top = NEG_INF, sum = 0.0f;
    for (int w = 0; w < warps; ++w) top = fmaxf(top, rows_shared[w][r][0]);
    for (int w = 0; w < warps; ++w)
      if (rows_shared[w][r][1] > 0.0f) sum += rows_shared[w][r][1] * exp2_approx(rows_shared[w][r][0] - top);
    *(float2*)(part_rows + 2 * r) = make_float2(top, sum);
  }
#ifndef PROBE
  float* sums = (float*)memory;  // [warps][16][HEAD_DIM], relative to the top of all warps
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = NEG_INF;
    for (int w = 0; w < warps; ++w) top = fmaxf(top, rows_shared[w][8 * r + lane / 4][0]);
    factor[r] = st[0].m[r] == NEG_INF ? 0.0f : exp2_approx(st[0].m[r] * scale_log2 - top);
  }
#pragma unroll
  for (int i = 0; i < kOut; i += 2) {
    const int r = (i >> 1) & 1, c = (i / 4) * 8 + 2 * (lane & 3);
    if (8 * r + lane / 4 < rows) *(float2*)(sums + (warp * 16 + 8 * r + lane / 4) * HEAD_DIM + c) = make_float2(o[i] * factor[r], o[i + 1] * factor[r]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * (HEAD_DIM / 4); i += blockDim.x) {
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int w = 0; w < warps; ++w) {
      const float4 y = *(const float4*)(sums + w * 16 * HEAD_DIM + 4 * i);
      x.x += y.x; x.y += y.y; x.z += y.z; x.w += y.w;
    }
    *(float4*)(d.partial + part * 16 * HEAD_DIM + 4 * i) = x;
  }
#endif

  // The last split of the tile joins them all.
  if (d.splits > 1 && !last_block(d.done + (long long)g.index * d.row_tiles + tile, d.splits)) return;
  if (d.splits == 1) __syncthreads();
  const long long part0 = part - split;
#ifdef PROBE
  for (int r = warp; r < rows; r += warps) {
    const float2 x = join_rows(d.partial_rows + (part0 * kRows + r) * 2, d.splits, kRows * 2);
    if (lane == 0) finish_probe(d, g, g.first + r, x);
  }
#else
  for (int r = warp; r < rows; r += warps) {
    int row, head;
    row_of(d, g, g.first + r, row, head);
    const float* pairs = d.partial_rows + (part0 * kRows + r) * 2;
    const float2 x = join_rows(pairs, d.splits, kRows * 2);
    const float inv = finish_row(d, g, row, head, x, lane == 0);
    const float* sum = d.partial + (part0 * 16 + r) * HEAD_DIM;
    const float top = x.x == NEG_INF ? 0.0f : x.x;
    for (int c = 4 * lane; c < HEAD_DIM; c += 128) {
      float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 16
      for (int i = 0; i < d.splits; ++i) {
        const float f = exp2_approx(__ldcg(pairs + i * kRows * 2) - top);
        const float4 z = __ldcg((const float4*)(sum + (long long)i * 16 * HEAD_DIM + c));
        y.x = __fmaf_rn(z.x, f, y.x); y.y = __fmaf_rn(z.y, f, y.y); y.z = __fmaf_rn(z.z, f, y.z); y.w = __fmaf_rn(z.w, f, y.w);
      }
      write_out(a, g, row, head, c, y, inv);
    }
  }
#endif
}
