// What the attention kernels share: the work items, the mask and the online softmax of one thread's two rows.
// Scores lie as the matrix instructions leave them: s[4 t + 2 r + e] is row r, column 8 t + 2 (lane & 3) + e.
#pragma once
#include "hopper.cuh"
#include "attend_args.h"

#ifdef BANDS
#define BAND_COUNT 2
#else
#define BAND_COUNT 1
#endif
#ifdef WINDOW
constexpr bool kWindow = true;
#else
constexpr bool kWindow = false;
#endif

struct Work { int batch, head, block, begin, count; Sequence seq; };

__device__ __forceinline__ Sequence sequence_of(const AttendArgs& a, int batch) {
  if (a.sequences) return a.sequences[batch];
  return Sequence{-a.skip, a.q_len, 0, a.k_len, a.q_offset, a.skip, batch, 0};
}

// Item t: key heads outermost, query blocks from the last to the first, the query heads of the key head innermost.
__device__ __forceinline__ Work decode(const AttendArgs& a, u32 t) {
  const int group = a.q_heads / a.kv_heads;
  Work w;
  const int member = t % group;
  u32 r = t / group;
  w.block = a.q_blocks - 1 - r % a.q_blocks;
  r /= a.q_blocks;
  w.head = (r % a.kv_heads) * group + member;
  w.batch = r / a.kv_heads;
  w.seq = sequence_of(a, w.batch);
  const int first = w.block * kTile;
  w.begin = 0;
  w.count = 0;
  if (first >= w.seq.q_len) { w.block = -1; return w; }
  if (a.row_ptr) {
    const int* row = a.row_ptr + (long long)(w.batch * a.q_heads + w.head) * a.q_blocks + w.block;
    w.begin = row[0];
    w.count = row[1] - w.begin;
    return w;
  }
  const int last_query = w.seq.q_offset + min(first + kTile, w.seq.q_len) - 1;
  const int keys = min(w.seq.k_len, last_query + 1);
  w.count = keys > 0 ? (keys + kTile - 1) / kTile : 0;
#ifdef WINDOW
  w.begin = min(w.count, max(0, w.seq.q_offset + first - a.window + 1) / kTile);
  w.count -= w.begin;
#endif
  return w;
}

struct RowState { float m[2], l[2]; };

// Drops the keys behind the last, or before the first, that the thread's two rows see, counted from the thread's first key.
template <int N> __device__ __forceinline__ void keep_until(float (&s)[N], int last, int last8) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    if ((i / 4) * 8 + (i & 1) > ((i & 2) ? last8 : last)) s[i] = NEG_INF;
}
template <int N> __device__ __forceinline__ void keep_from(float (&s)[N], int first, int first8) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    if ((i / 4) * 8 + (i & 1) < ((i & 2) ? first8 : first)) s[i] = NEG_INF;
}

// Drops the keys a row may not see. query: position of the thread's first row; key: position of the tile's first key.
// near, far: the border crosses the tile, and the keys are to be those of that side of it.
template <int N>
__device__ __forceinline__ void mask_scores(float (&s)[N], const AttendArgs& a, int query, int k_len, int key, bool near, bool far, bool visible) {
  const int base = key + 2 * (threadIdx.x & 3), end = k_len - 1 - base;
  query -= base;
  if (visible || far) {
    const int last = query - (far ? a.band : 0);
    keep_until(s, min(last, end), min(last + 8, end));
  }
  if (near || kWindow) {
    const int first = max(near ? query - a.band : -0x40000000, kWindow ? query - a.window : -0x40000000) + 1;
    keep_from(s, first, first + 8);
  }
}

// Whether any of 64 rows from first_query may not see one of `keys` keys from low.
template <bool bands>
__device__ __forceinline__ bool needs_mask(const AttendArgs& a, int first_query, int k_len, int low, int keys, bool far) {
  const int high = low + keys - 1;
  bool need = high > min(first_query, k_len - 1);
  if (kWindow) need = need || low < first_query + 63 - a.window + 1;
  if (bands) need = need || (far ? first_query - high < a.band : first_query + 63 - low >= a.band);
  return need;
}

#ifdef SOFTCAP
template <int N> __device__ __forceinline__ void cap_scores(float (&s)[N], const AttendArgs& a) {
  const float in = 2.0f * 1.44269504f * a.scale / a.softcap;
#pragma unroll
  for (int i = 0; i < N; ++i) s[i] = a.softcap * (1.0f - __fdividef(2.0f, exp2_approx(s[i] * in) + 1.0f));
}
#endif

// Turns scores into probabilities relative to the row reference; true when the accumulator must be scaled by `rescale`.
template <bool first, int N>
__device__ __forceinline__ bool softmax(float (&s)[N], RowState& st, float (&rescale)[2], float scale_log2) {
  float m[2] = {st.m[0], st.m[1]};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float t[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) t[j] = fmaxf(s[8 * j + 2 * r], s[8 * j + 2 * r + 1]);
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      if ((i & 1) == 0) { if (i >= 8) t[(i / 2) & 3] = fmaxf(fmaxf(t[(i / 2) & 3], s[4 * i + 2 * r]), s[4 * i + 2 * r + 1]); }
      else t[(i / 2) & 3] = fmaxf(fmaxf(t[(i / 2) & 3], s[4 * i + 2 * r]), s[4 * i + 2 * r + 1]);
    }
    float top = fmaxf(fmaxf(t[0], t[1]), fmaxf(t[2], t[3]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    m[r] = first ? top : fmaxf(m[r], top);
  }
  bool grew = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rescale[r] = 1.0f;
    if (!first) {
      const bool grow = (m[r] - st.m[r]) * scale_log2 > 8.0f;  // false for -inf against -inf
      rescale[r] = grow ? exp2_approx((st.m[r] - m[r]) * scale_log2) : 1.0f;
      m[r] = grow ? m[r] : st.m[r];
      grew = grew || grow;
    }
    st.m[r] = m[r];
    const float ref = m[r] == NEG_INF ? 0.0f : m[r] * scale_log2;
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * i + 2 * r + e];
        x = exp2_approx(__fmaf_rn(x, scale_log2, -ref));
        sum[e] += x;
      }
    }
    st.l[r] = (first ? 0.0f : st.l[r] * rescale[r]) + (sum[0] + sum[1]);
  }
  return first ? false : __any_sync(~0u, grew);
}

// Ends the softmax of the thread's two rows, row0 and row0 + 8 of the sequence: writes their LSE, and leaves in inv what
// the accumulator is to be multiplied by.
__device__ __forceinline__ void finish_rows(const AttendArgs& a, const Sequence& seq, int head, int row0,
                                            const RowState& st, float scale_log2, float (&inv)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = st.l[r];
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    float top = st.m[r] * scale_log2;  // log2 units; -inf when no key was kept
    float factor = 1.0f;
#ifdef SINKS
    const float sink = a.sinks[head] * 1.44269504f;
    const float joint = fmaxf(top, sink);
    factor = exp2_approx(top - joint);
    l = l * factor + exp2_approx(sink - joint);
    top = joint;
#endif
    inv[r] = l > 0.0f ? factor / l : 0.0f;
    const int row = row0 + 8 * r;
    if ((threadIdx.x & 3) == 0 && row >= seq.skip && row < seq.q_len) {
      a.lse[seq.box * a.lse_batch + head * a.lse_head + seq.q_row + row] =
          l > 0.0f ? (top + log2_approx(l)) * 0.69314718f : NEG_INF;
    }
  }
}
