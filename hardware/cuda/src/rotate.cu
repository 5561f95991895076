// Rotates queries that are already rotated to the positions that a band of a position plan gives them: one pass over q for
// a plan of two bands. Angles in float64, a table of sines and cosines for each row, shared by all heads.
//
// Versions (H100, 32 heads, 128k tokens, rows from 43k on): 1 words of two elements, .63 ms, 2.2 TB/s; 2 eight elements
// at a time, four loads before the first store, .49 ms, 2.9 TB/s, the speed of a copy.
//
// Shapes: head_dim up to 128 in steps of 8; up to 64 pairs, an even number of them unless interleaved; 16-byte aligned
// rows. Macros: FP16.
#include "hopper.cuh"
#include "rotate_args.h"

constexpr int kRowsAtOnce = 4;

__device__ __forceinline__ double target(const RotateArgs& a, long long p) {
  if (a.modulo > 0) p %= a.modulo;
  if (a.group > 1) p /= a.group;
  const double x = a.scale * (double)p + a.offset;
  return a.limit > 0.0 && x > a.limit ? a.limit : x;
}

struct Chunk { u32 word[4]; };  // eight elements

__device__ __forceinline__ Chunk load_chunk(const void* at) {
  Chunk x;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3]) : "l"(at));
  return x;
}
__device__ __forceinline__ void store_chunk(void* at, const Chunk& x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3]) : "memory");
}

// Turns eight neighbouring elements and the eight half a rotary width on.
__device__ __forceinline__ void turn(Chunk& low, Chunk& high, const float2* angles) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 c = angles[2 * i], e = angles[2 * i + 1];
    const float x0 = unpack_lo(low.word[i]), x1 = unpack_hi(low.word[i]), y0 = unpack_lo(high.word[i]), y1 = unpack_hi(high.word[i]);
    low.word[i] = pack(x0 * c.x - y0 * c.y, x1 * e.x - y1 * e.y);
    high.word[i] = pack(x0 * c.y + y0 * c.x, x1 * e.y + y1 * e.x);
  }
}

// The rows of all heads, a multiple of eight pairs that lie half a rotary width apart. A thread takes chunks of eight.
__device__ __forceinline__ void turn_chunks(const RotateArgs& a, const float2 (&table)[kRowsAtOnce][kMostPairs], int box, int row, int count) {
  constexpr int batch = 4;
  const int turned = a.pairs / 8, step = a.head_dim / 8 - turned, total = count * a.heads * step;
  const char* in = (const char*)a.in + 2 * (box * a.in_batch + row * a.in_row);
  char* out = (char*)a.out + 2 * (box * a.out_batch + row * a.out_row);
  for (int begin = threadIdx.x; begin < total; begin += 256 * batch) {
    Chunk low[batch], high[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const int i = begin + 256 * b, w = i % step, head = i / step % a.heads, r = i / step / a.heads;
      if (i >= total) continue;
      const char* from = in + 2 * (head * a.in_head + r * a.in_row);
      low[b] = load_chunk(from + 16 * (w < turned ? w : w + turned));  // the columns behind the rotary ones are copied
      if (w < turned) high[b] = load_chunk(from + 16 * (w + turned));
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const int i = begin + 256 * b, w = i % step, head = i / step % a.heads, r = i / step / a.heads;
      if (i >= total) continue;
      char* to = out + 2 * (head * a.out_head + r * a.out_row);
      if (w < turned) {
        turn(low[b], high[b], &table[r][8 * w]);
        store_chunk(to + 16 * (w + turned), high[b]);
      }
      store_chunk(to + 16 * (w < turned ? w : w + turned), low[b]);
    }
  }
}

// Grid (ceil(rows / 4), sequences), 256 threads.
extern "C" __global__ void __launch_bounds__(256) rotate(const __grid_constant__ RotateArgs a) {
  __shared__ float2 table[kRowsAtOnce][kMostPairs];  // cosine, sine
  const int first = blockIdx.x * kRowsAtOnce;
  int rows = a.rows, row0 = 0, box = blockIdx.y, offset = a.q_offset;
  if (a.sequences) {
    const Sequence s = a.sequences[blockIdx.y];
    row0 = s.q_row + s.skip;
    rows = s.q_len - s.skip;
    offset = s.q_offset + s.skip;
    box = s.box;
  }
  const int count = min(kRowsAtOnce, rows - first);
  if (count <= 0 || offset + first + count <= a.from) return;
  for (int i = threadIdx.x; i < kRowsAtOnce * a.pairs; i += 256) {
    const int r = i / a.pairs, pair = i % a.pairs, p = offset + first + r;
    double sine, cosine;
    sincos(a.wanted[pair] * target(a, p) - a.applied[pair] * (double)p, &sine, &cosine);
    table[r][pair] = make_float2((float)cosine, (float)sine);
  }
  __syncthreads();
  if (!a.interleaved && a.pairs % 8 == 0) {
    turn_chunks(a, table, box, row0 + first, count);
    return;
  }
  // A thread turns two neighbouring elements, and the two half a rotary width on: of one row and one head.
  const int words = a.head_dim / 2, turned = a.interleaved ? a.pairs : a.pairs / 2, step = words - (a.interleaved ? 0 : turned);
  for (int i = threadIdx.x; i < count * a.heads * step; i += 256) {
    const int w = i % step, head = i / step % a.heads, r = i / step / a.heads;
    const u32* in = (const u32*)a.in + (box * a.in_batch + head * a.in_head + (long long)(row0 + first + r) * a.in_row) / 2;
    u32* out = (u32*)a.out + (box * a.out_batch + head * a.out_head + (long long)(row0 + first + r) * a.out_row) / 2;
    if (w >= turned) {  // not rotary
      const int at = w + (a.interleaved ? 0 : turned);
      out[at] = in[at];
    } else if (a.interleaved) {
      const float2 c = table[r][w];
      const float x = unpack_lo(in[w]), y = unpack_hi(in[w]);
      out[w] = pack(x * c.x - y * c.y, x * c.y + y * c.x);
    } else {
      const float2 c = table[r][2 * w], e = table[r][2 * w + 1];
      const u32 low = in[w], high = in[w + turned];
      const float x0 = unpack_lo(low), x1 = unpack_hi(low), y0 = unpack_lo(high), y1 = unpack_hi(high);
      out[w] = pack(x0 * c.x - y0 * c.y, x1 * e.x - y1 * e.y);
      out[w + turned] = pack(x0 * c.y + y0 * c.x, x1 * e.y + y1 * e.x);
    }
  }
}
