// Block-sparse causal attention for sm_90a: out = softmax(scale q k^T over the kept 128 x 128 tiles) v, and its LSE.
//
// One producer warp feeds K and V tiles by TMA through two-stage rings; two consumer warpgroups own 64 query rows each.
// Inside a warpgroup the softmax of tile j overlaps the product P V of tile j - 1 and the products of the other
// warpgroup (FlashAttention-3, arXiv 2407.08608). The grid is persistent: blocks claim (head, query block) items from a
// counter, longest causal rows first, the query heads of one key head next to each other so that they share K and V in L2.
// The running maximum is replaced only when it grows by more than 8 in log2 units: the old one stays a valid reference,
// and the 64 multiplications of the accumulator are skipped for almost every tile.
//
// Shapes: head_dim up to 128 in steps of 8, any lengths, packed and padded batches, q_heads a multiple of kv_heads,
// 16-byte aligned rows.
// Error, relative to float32 on the same mask: bf16 2.4e-3 (two roundings to 16 bits, of P and of the output), fp16 3e-4.
// Versions (H200, 128k tokens, TFLOP/s dense / 10 % mask; more in docs/decisions/cuda-kernel.md):
//   1 Q in shared memory                                        601 / 563
//   2 Q in registers                                            627 / 596
//   3 columns read ahead by their own warp, items joined        637 / 597
//   4 wait for P V held below the exponentials                  646 / 611
//   5 Q read one item ahead, first softmax over the last P V    644 / 622
//   6 sequences, blocks by position, any head_dim: the same (H100 664 / 648)
//   7 BANDS: the turn to far tiles known a tile ahead; cost of the second rotation itself 4 - 7 % -> 2 - 3 %
//   8 BANDS: border tiles once, with two softmaxes and one P V; masks and borders decided where items are laid out
//   9 output by TMA, beneath the next item: 10 % mask 32k 2.4 % faster sustained, dense .5 - 1.3 %; with BANDS 2 - 6 %
//  10 BANDS: borders for 64 rows at a time; the second rotation turned in registers (TURN), not by a kernel before: with that
//    kernel counted, the second rotation costs 5.8 - 6.5 % at 8k instead of 8.3 - 21, 1.3 - 3.4 at 32k instead of 4.6 - 13.6
//  11 BANDS: one softmax for a border tile, whose two sides are joined as scores, 64 keys at a time where both are needed; the
//    loop over usual tiles has no trace of bands left; no zeros for an item's first P V: at 8k 5.7 -> 4.3 % dense,
//    6.5 -> 4.8 - 5.3 % with the mask
//
// Macros: HEAD_DIM (64, 128), FP16, BANDS (two rotations of q by distance), WINDOW, SOFTCAP, SINKS; TURN, with BANDS: the
// second rotation is a turn of the first by one angle for each pair, of neighbours if 0, else of columns 16 TURN apart.
#include "tiles.cuh"
#include "attend.cuh"

constexpr int kStages = 2;
constexpr int kOut = HEAD_DIM / 2;                           // accumulator registers of a thread

// A tile as 64 of its rows see it: flags and key block. Of the two rotations, far tiles take the second; border tiles have
// keys for either. kTurn: the queries are turned once they are multiplied with this tile; kSave: the next tile is a border
// and needs them as they were; kSides: the next tile is a border or turns the queries; kMask: the rows may not see all of
// the tile; kNear: the item has no far or border tile; kOther: the first half of a border tile's keys has some on its other side,
// kOther << 1: the second;
// kFirst: the first of its item.
enum : u32 {
  kLast = 1u << 31, kFar = 1u << 30, kBorder = 1u << 29, kNear = 1u << 28, kTurn = 1u << 27, kSave = 1u << 26, kMask = 1u << 25,
  kSides = 1u << 24, kOther = 1u << 22, kFirst = 1u << 21, kColumn = BAND_COUNT == 2 ? (1u << 21) - 1 : (1u << 25) - 1
};
#if defined(BANDS) && !defined(TURN)
constexpr bool kCopied = true;  // the second rotation
#else
constexpr bool kCopied = false;
#endif
constexpr u32 kEnd = BAND_COUNT == 2 ? kLast | kSides : kLast;  // of a run of usual tiles
// The first product P V of an item is added to zeros or, with two rotations, where ptxas makes 128 instructions of those
// instead of 32, to nothing. pending: the tile whose product is next.
constexpr bool kZeros = BAND_COUNT == 1;
__device__ __forceinline__ bool adds(u32 pending) { return kZeros || !(pending & kFirst); }

// Plan is up to 32 key blocks of one item, read ahead of the copies.
constexpr int kPlans = 2;
struct Plan {
  int count;       // columns here; < 0 ends the kernel
  int first, last; // the first and the last part of the item
  int batch, box, head, block, kv_head, q_row, k_row;
  int k_end;       // keys of the sequence where others follow in the tensor; otherwise more than there can be
  u32 columns[2][32];  // with their flags, for either half of the rows
};

struct Shared {
  alignas(8) u64 q_full, q_empty, q2_full, q2_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages], v_raw;
  u64 plan_full[kPlans], plan_empty[kPlans];
  u32 k_info[kStages][2];
  int batch, head, block, rows;  // the item of the query tile; rows < 0 ends the kernel, rows == 0 means no tile
#ifdef TURN
  alignas(16) float angle[kMostPairs][2];
#endif
  Plan plans[kPlans];
};

// Ring is the position in a ring of kStages slots.
struct Ring {
  u32 slot, phase;
  __device__ __forceinline__ void next() { if (++slot == kStages) { slot = 0; phase ^= 1; } }
};

#define BAR(field) shared_address(&sh->field)

// Column i of an item, from the last to the first.
__device__ __forceinline__ int column_of(const AttendArgs& a, const Work& w, int i) {
  const int at = w.begin + w.count - 1 - i;
  return a.row_ptr ? a.cols[at] : at;
}

// Whether all distances of 64 rows to a tile are those of the second rotation, or any; low: position of the first of them.
__device__ __forceinline__ bool is_far(const AttendArgs& a, int low, int column) { return low - column * kTile - (kTile - 1) >= a.band; }
__device__ __forceinline__ bool has_far(const AttendArgs& a, int low, int column) { return low + 63 - column * kTile >= a.band; }

// The halves of the keys of a border tile that have some on its far or near side.
__device__ __forceinline__ u32 halves_of(const AttendArgs& a, int low, int column, bool far) {
  const int distance = low - column * kTile - a.band;  // of the first row and key, counted from the border
  return far ? (distance + 63 >= 0 ? kOther : 0) | (distance - 1 >= 0 ? kOther << 1 : 0)
             : (distance - 63 < 0 ? kOther : 0) | (distance - 127 < 0 ? kOther << 1 : 0);
}

// What the second rotation makes of column i of an item, for 64 rows from position low on.
__device__ __forceinline__ u32 sides_of(const AttendArgs& a, const Work& w, int low, int i) {
  const int column = column_of(a, w, i), next = i + 1 < w.count ? column_of(a, w, i + 1) : -1;
  if (is_far(a, low, column)) return kFar;
  if (has_far(a, low, column)) {
    if (i > 0 && has_far(a, low, column_of(a, w, i - 1)))
      return kBorder | kFar | halves_of(a, low, column, false);  // the queries are turned already
    return kBorder | kTurn | halves_of(a, low, column, true) | (next >= 0 && !is_far(a, low, next) ? kSave : 0);
  }
  // Rows without a far key release the copied rotation with the others.
  return (next >= 0 ? is_far(a, low, next) : kCopied) ? kTurn : 0;
}

// Column i of an item with its flags, but kLast, for 64 rows from position low on.
__device__ __forceinline__ u32 tile_of(const AttendArgs& a, const Work& w, int low, int i, bool near) {
  const int column = column_of(a, w, i);
  u32 tile = column;
  if (needs_mask<false>(a, low, w.seq.k_len, column * kTile, kTile, false)) tile |= kMask;
#ifdef BANDS
  if (i == 0) tile |= kFirst;
  if (near) return tile | kNear;
  tile |= sides_of(a, w, low, i);
  if ((tile & (kBorder | kTurn)) == kTurn || i + 1 < w.count && (sides_of(a, w, low, i + 1) & kBorder)) tile |= kSides;
#endif
  return tile;
}

// One warp claims items and lays out their columns, from the last to the first: the tiles that need a mask come first.
__device__ __forceinline__ void plan_items(const AttendArgs& a, Shared* sh) {
  const int lane = threadIdx.x & 31;
  const u32 items = (u32)a.batch * a.q_heads * a.q_blocks;
  const int group = a.q_heads / a.kv_heads;
  u32 slot = 0, phase = 1;
  while (true) {
    u32 t = 0;
    if (lane == 0) t = atomicAdd(a.counter, 1u);
    t = __shfl_sync(~0u, t, 0);
    const bool end = t >= items;
    Work w = {};
    if (!end) {
      w = decode(a, t);
      if (w.block < 0) continue;
    }
    const int low = w.seq.q_offset + w.block * kTile;
    bool near = false;
#ifdef BANDS
    near = w.count > 0 && low + kTile - 1 - column_of(a, w, w.count - 1) * kTile < a.band;  // even the most distant one
#endif
    int next = 0;
    do {
      u32 tile[2] = {0, 0};
#pragma unroll
      for (int g = 0; g < 2; ++g)
        if (next + lane < w.count) tile[g] = tile_of(a, w, low + 64 * g, next + lane, near);
      barrier_wait(BAR(plan_empty[slot]), phase);
      Plan* p = &sh->plans[slot];
      p->columns[0][lane] = tile[0];
      p->columns[1][lane] = tile[1];
      if (lane == 0) {
        p->count = end ? -1 : min(32, w.count - next);
        p->first = next == 0;
        p->last = next + 32 >= w.count;
        p->batch = w.batch; p->head = w.head; p->block = w.block; p->kv_head = w.head / group;
        p->box = w.seq.box;
        p->q_row = w.seq.q_row + w.block * kTile;
        p->k_row = w.seq.k_row;
        p->k_end = w.seq.k_row + w.seq.k_len < a.k_rows ? w.seq.k_len : 0x7fffffff;
      }
      barrier_arrive(BAR(plan_full[slot]));
      if (++slot == kPlans) { slot = 0; phase ^= 1; }
      next += 32;
    } while (next < w.count);
    if (end) break;
  }
  if (lane == 0) {
    // The last block to finish leaves the counter as it was found.
    __threadfence();
    if (atomicAdd(a.counter + 1, 1u) == gridDim.x - 1) {
      a.counter[0] = 0;
      a.counter[1] = 0;
    }
  }
}

// One thread copies the query tiles, up to one item ahead of the consumers. A second rotation that is copied has barriers
// of its own: it is needed until an item's first far tile, the first one only until it is in registers.
__device__ __forceinline__ void produce_queries(const AttendArgs& a, Shared* sh, u32 q_tile, const TensorMap* map_q,
                                                const TensorMap* map_q2) {
  u32 q_phase = 1, q2_phase = 1, plan_phase = 0, plan_slot = 0;
  while (true) {
    barrier_wait(BAR(plan_full[plan_slot]), plan_phase);
    const Plan* p = &sh->plans[plan_slot];
    const int count = p->count, row = p->q_row, head = p->head, box = p->box;
    const bool first = p->first, both = kCopied && first && count > 0 && !(p->columns[0][0] & kNear);
    if (first) {
      barrier_wait(BAR(q_empty), q_phase);
      q_phase ^= 1;
      sh->batch = p->batch; sh->head = head; sh->block = p->block; sh->rows = count;
      if (count > 0) {
        barrier_expect(BAR(q_full), kTileBytes);
        copy_tile(q_tile, map_q, BAR(q_full), row, head, box);
      } else {
        barrier_arrive(BAR(q_full));  // an empty row, or the end
      }
    }
    barrier_arrive(BAR(plan_empty[plan_slot]));
    if (count < 0) break;
    if (++plan_slot == kPlans) { plan_slot = 0; plan_phase ^= 1; }
    if (both) {
      barrier_wait(BAR(q2_empty), q2_phase);
      q2_phase ^= 1;
      barrier_expect(BAR(q2_full), kTileBytes);
      copy_tile(q_tile + kTileBytes, map_q2, BAR(q2_full), row, head, box);
    }
  }
}

// Loads a V tile. Rows from `valid` on belong to other sequences: a NaN among them would pass a weight of zero, so they
// are set to zero before the consumers see the tile. The whole warp calls it.
__device__ __forceinline__ void load_values(Shared* sh, u32 slot, u32 tile, const TensorMap* map_v, int row, int valid, int head,
                                            int box, u32& raw_phase) {
  const int lane = threadIdx.x & 31;
  if (valid >= kTile) {
    if (lane == 0) {
      barrier_expect(BAR(v_full[slot]), kTileBytes);
      copy_tile(tile, map_v, BAR(v_full[slot]), row, head, box);
    }
    return;
  }
  if (lane == 0) {
    barrier_expect(BAR(v_raw), kTileBytes);
    copy_tile(tile, map_v, BAR(v_raw), row, head, box);
  }
  barrier_wait(BAR(v_raw), raw_phase);
  raw_phase ^= 1;
#pragma unroll 1
  for (int i = max(valid, 0) * 8 + lane; i < kTile * 8; i += 32)
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + h * kHalfBytes + i * 16), "r"(0) : "memory");
  fence_async_proxy();
  __syncwarp();
  if (lane == 0) barrier_arrive(BAR(v_full[slot]));
}

// One warp copies K tiles, and V tiles one behind: the order in which the consumers free the slots.
__device__ __forceinline__ void produce(const AttendArgs& a, Shared* sh, u32 k_ring, u32 v_ring, const TensorMap* map_k,
                                        const TensorMap* map_v) {
  const int lane = threadIdx.x & 31;
  u32 plan_phase = 0, plan_slot = 0, raw_phase = 0;
  Ring kr = {0, 1}, vr = {0, 1};
  int v_row = 0, v_valid = -1;  // of the tile before; -1: none
  while (true) {
    barrier_wait(BAR(plan_full[plan_slot]), plan_phase);
    // The lane that will release the plan reads it for its warp.
    const Plan* p = &sh->plans[plan_slot];
    int x[6] = {};
    if (lane == 0) { x[0] = p->count; x[1] = p->box; x[2] = p->kv_head; x[3] = p->k_row; x[4] = p->k_end; x[5] = p->last; }
#pragma unroll
    for (int i = 0; i < 6; ++i) x[i] = __shfl_sync(~0u, x[i], 0);
    const int count = x[0], box = x[1], kv_head = x[2], k_row = x[3], k_end = x[4], last_part = x[5];
    if (count < 0) break;
    for (int e = 0; e < count; ++e) {
      u32 halves[2] = {0, 0};
      if (lane == 0) { halves[0] = p->columns[0][e]; halves[1] = p->columns[1][e]; }
      const u32 c = __shfl_sync(~0u, halves[0], 0);
      const int row = k_row + (int)(c & kColumn) * kTile, valid = k_end - (int)(c & kColumn) * kTile;
      const bool last = last_part && e == count - 1;
      barrier_wait(BAR(k_empty[kr.slot]), kr.phase);
      if (lane == 0) {
#pragma unroll
        for (int g = 0; g < 2; ++g) sh->k_info[kr.slot][g] = halves[g] | (last ? kLast : 0);
        barrier_expect(BAR(k_full[kr.slot]), kTileBytes);
        copy_tile(k_ring + kr.slot * kTileBytes, map_k, BAR(k_full[kr.slot]), row, kv_head, box);
      }
      kr.next();
      for (int behind = v_valid < 0; behind < 1 + last; ++behind) {  // the tile before; after the last tile itself too
        barrier_wait(BAR(v_empty[vr.slot]), vr.phase);
        load_values(sh, vr.slot, v_ring + vr.slot * kTileBytes, map_v, behind ? row : v_row, behind ? valid : v_valid, kv_head, box, raw_phase);
        vr.next();
      }
      v_row = row;
      v_valid = last ? -1 : max(valid, 0);
    }
    if (lane == 0) barrier_arrive(BAR(plan_empty[plan_slot]));
    if (++plan_slot == kPlans) { plan_slot = 0; plan_phase ^= 1; }
  }
}

// O += P V, or O = P V.
__device__ __forceinline__ void product_pv(float (&o)[kOut], const u32 (&p)[8][4], u32 v, bool add) {
  const u64 vd = descriptor(v, kHalfBytes);
#pragma unroll
  for (int kk = 0; kk < 8; ++kk) wgmma_rs<1>(o, p[kk], advance(vd, kk * 2048), kk > 0 || add);
}

__device__ __forceinline__ void clear(float (&o)[kOut]) {
#pragma unroll
  for (int i = 0; i < kOut; ++i) o[i] = 0.0f;
}

__device__ __forceinline__ void scale_rows(float (&o)[kOut], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kOut; ++i) o[i] *= factor[(i >> 1) & 1];
}

__device__ __forceinline__ void pack_scores(u32 (&p)[8][4], const float (&s)[64]) {
#pragma unroll
  for (int kk = 0; kk < 8; ++kk)
#pragma unroll
    for (int j = 0; j < 4; ++j) p[kk][j] = pack(s[8 * kk + 2 * j], s[8 * kk + 2 * j + 1]);
}

// A warp's rows of the output tile: 16 rows x 64 columns for each half, as TMA swizzles them.
__device__ __forceinline__ u32 staged(u32 stage, int row, int chunk) {
  return stage + (chunk / 8) * 2048 + row * 128 + (((chunk & 7) ^ (row & 7)) * 16);
}

// Writes the 16 rows of this warp: registers -> shared memory -> a copy that goes on beneath the next item. It leaves out
// what lies behind the tensor, but traps on rows before it; where rows are left of that or belong to no or another
// sequence, those that are this one's go by 16-byte stores.
__device__ __forceinline__ void write_rows(const AttendArgs& a, const float (&o)[kOut], const float (&inv)[2], u32 stage,
                                           const TensorMap* map_out, const Sequence& seq, int head, int row0) {
  const int lane = threadIdx.x & 31;
  constexpr int chunks = HEAD_DIM / 8, at_once = 32 / chunks;
  bulk_wait_read();  // the rows of the item before have left
  __syncwarp();
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk) {
    const int row = (lane & 7) + ((lane >> 3) & 1) * 8, chunk = 2 * kk + (lane >> 4);
    const float* x = o + 8 * kk;
    stmatrix_x4(staged(stage, row, chunk), pack(x[0] * inv[0], x[1] * inv[0]),
                pack(x[2] * inv[1], x[3] * inv[1]), pack(x[4] * inv[0], x[5] * inv[0]), pack(x[6] * inv[1], x[7] * inv[1]));
  }
  fence_async_proxy();
  __syncwarp();
  const bool whole = row0 >= seq.skip && (!a.sequences || row0 + 16 <= seq.q_len);
#pragma unroll
  for (int h = 0; h < kHalves; ++h) tma_store(whole && lane == 0, map_out, stage + h * 2048, h * 64, seq.q_row + row0, head, seq.box);
  bulk_commit();
  // From the arguments alone: a branch on what differs between warps makes ptxas serialise every wgmma (C7520).
  if (!a.sequences && a.skip == 0) return;
  char* base = (char*)a.out + 2 * (seq.box * a.out_batch + head * a.out_head + (long long)(seq.q_row + row0) * a.out_row);
#pragma unroll 1
  for (int it = 0; it < 16 / at_once; ++it) {
    const int row = it * at_once + lane / chunks, chunk = lane % chunks;
    u32 x, y, z, t;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x), "=r"(y), "=r"(z), "=r"(t) : "r"(staged(stage, row, chunk)));
    if (!whole && row0 + row >= seq.skip && row0 + row < seq.q_len && chunk * 8 < a.head_dim)
      asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(base + 2 * row * a.out_row + chunk * 16), "r"(x), "r"(y), "r"(z), "r"(t) : "memory");
  }
}

struct Item { int rows, head, block; Sequence seq; };

// Normalises and writes the rows of a finished item.
__device__ __forceinline__ void finish(const AttendArgs& a, const Item& item, const float (&o)[kOut], const RowState& st,
                                       float scale_log2, u32 stage, const TensorMap* map_out, int row_in_tile) {
  const int lane = threadIdx.x & 31, row0 = item.block * kTile + row_in_tile;
  float inv[2];
  finish_rows(a, item.seq, item.head, row0 + lane / 4, st, scale_log2, inv);
  write_rows(a, o, inv, stage, map_out, item.seq, item.head, row0);
}

// Soft cap and mask of one tile of scores.
__device__ __forceinline__ void limit_scores(float (&s)[64], const AttendArgs& a, const Item& item, u32 info, int row_in_tile) {
#ifdef SOFTCAP
  cap_scores(s, a);
#endif
  if (info & kMask)
    mask_scores(s, a, item.seq.q_offset + item.block * kTile + row_in_tile + (threadIdx.x & 31) / 4, item.seq.k_len,
                (int)(info & kColumn) * kTile, false, false, true);
}

// ptxas hoists the wait for P V above the exponentials, which are there to overlap it, unless a branch on their sum
// stands between.
__device__ __forceinline__ void hold_wait(const RowState& st) {
  if (__any_sync(~0u, st.l[0] + st.l[1] < 0.0f)) asm volatile("nanosleep.u32 1;" ::: "memory");
}

__device__ __forceinline__ u32 tile_info(const Shared* sh, u32 slot, int group) {
  const u32 x = (threadIdx.x & 31) == 0 ? sh->k_info[slot][group] : 0;
  return __shfl_sync(~0u, x, 0);
}

__device__ __forceinline__ Item read_item(const AttendArgs& a, Shared* sh, u32& q_phase) {
  barrier_wait(BAR(q_full), q_phase);
  q_phase ^= 1;
  // The lane that will release the barrier reads for its warp.
  int r[4] = {};
  if ((threadIdx.x & 31) == 0) { r[0] = sh->rows; r[1] = sh->batch; r[2] = sh->head; r[3] = sh->block; }
#pragma unroll
  for (int i = 0; i < 4; ++i) r[i] = __shfl_sync(~0u, r[i], 0);
  Item x = {r[0], r[2], r[3], {}};
  if (x.rows >= 0) x.seq = sequence_of(a, r[1]);
  return x;
}

// A border tile holds the scores of one side; those of the other take their place, 64 keys at a time where there are any.
// Nothing is under way. The near rotation is multiplied from shared memory, `near`, 64 rows, the far one from registers.
__device__ __forceinline__ void join_sides(float (&s)[64], const AttendArgs& a, const Item& item, u32 info, int row_in_tile,
                                           const u32 (&far)[kHalves * 4][4], u32 near, u32 k) {
  const bool is_near = info & kFar;  // the other side
  const int lane = threadIdx.x & 31;
  const int first = item.seq.q_offset + item.block * kTile + row_in_tile + lane / 4 - (int)(info & kColumn) * kTile - 2 * (lane & 3) - a.band;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!(info & kOther << half)) continue;
    float x[32];
    const u64 kd = descriptor(k + half * 64 * 128, 16);
    pin(x);
    wgmma_fence();
    if (is_near) {
      const u64 qd = descriptor(near, 16);
#pragma unroll
      for (int kk = 0; kk < HEAD_DIM / 16; ++kk) {
        const u32 step = (kk / 4) * kHalfBytes + (kk % 4) * 32;
        wgmma_ss(x, advance(qd, step), advance(kd, step), kk > 0);
      }
    } else {
#pragma unroll
      for (int kk = 0; kk < HEAD_DIM / 16; ++kk) wgmma_rs<0>(x, far[kk], advance(kd, (kk / 4) * kHalfBytes + (kk % 4) * 32), kk > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(x);
    // Key j is far for row i if j <= last + i.
    const int last = first - 64 * half;
#pragma unroll
    for (int i = 0; i < 32; ++i)
      if (((i / 4) * 8 + (i & 1) <= ((i & 2) ? last + 8 : last)) != is_near) s[32 * half + i] = x[i];
  }
}

#ifdef TURN
// The queries of this warp turned by the angles: with TURN steps of 16 columns between the members of a pair, or, with 0,
// of neighbours.
__device__ __forceinline__ void turn_query(u32 (&q)[kHalves * 4][4], u32 angles) {
  constexpr int steps = TURN ? TURN : HEAD_DIM / 16;
  const u32 at = angles + (TURN ? 16 : 8) * (threadIdx.x & 3);
#pragma unroll
  for (int kk = 0; kk < steps; ++kk)
#pragma unroll
    for (int j = 0; j < 4; j += 2) {  // two rows each
#if TURN
      float c0, s0, c1, s1;
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(c0), "=f"(s0), "=f"(c1), "=f"(s1) : "r"(at + kk * 128 + j * 32));
#pragma unroll
      for (int r = j; r < j + 2; ++r) {
        const u32 x = q[kk][r], y = q[kk + TURN][r];
        const float x0 = unpack_lo(x), x1 = unpack_hi(x), y0 = unpack_lo(y), y1 = unpack_hi(y);
        q[kk][r] = pack(x0 * c0 - y0 * s0, x1 * c1 - y1 * s1);
        q[kk + TURN][r] = pack(x0 * s0 + y0 * c0, x1 * s1 + y1 * c1);
      }
#else
      float c, s;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(c), "=f"(s) : "r"(at + kk * 64 + j * 16));
#pragma unroll
      for (int r = j; r < j + 2; ++r) {
        const float x = unpack_lo(q[kk][r]), y = unpack_hi(q[kk][r]);
        q[kk][r] = pack(x * c - y * s, x * s + y * c);
      }
#endif
    }
}
#endif

__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

__device__ __forceinline__ void store_part(u32 warp_rows, int kk, const u32 (&x)[4]) {
  stmatrix_x4(query_part(warp_rows, kk), x[0], x[1], x[2], x[3]);
}

// Lays queries out where the products of their warpgroup read them from shared memory, once those before have; the queries
// that are there take their place, if they are the second rotation.
__device__ __forceinline__ void save_query(u32 (&q)[kHalves * 4][4], u32 warp_rows, int group) {
  group_sync(group);
#pragma unroll
  for (int kk = 0; kk < HEAD_DIM / 16; ++kk) {
    u32 x[4];
    if (kCopied) ldmatrix_x4(query_part(warp_rows, kk), x);
    if (kCopied) __syncwarp();
    store_part(warp_rows, kk, q[kk]);
    if (kCopied)
#pragma unroll
      for (int i = 0; i < 4; ++i) q[kk][i] = x[i];
  }
  fence_async_proxy();
  group_sync(group);
}

// A warp is done with a query tile.
#define RELEASE(barrier) do { __syncwarp(); if (lane == 0) barrier_arrive(BAR(barrier)); } while (0)
// It is done with the tile of keys, or of values, and the next one is in the next slot.
#define RELEASE_KEYS() do { if (lane == 0) barrier_arrive(BAR(k_empty[kr.slot])); kr.next(); } while (0)
#define RELEASE_VALUES() do { if (lane == 0) barrier_arrive(BAR(v_empty[vr.slot])); vr.next(); } while (0)
// The scores of the tile of keys, and behind them the weights of the tile before times its values, which may be added to o.
#define MULTIPLY_BOTH(add) do { \
    pin(s); \
    pin(o); \
    wgmma_fence(); \
    product_qk(s, q, k_ring + kr.slot * kTileBytes); \
    wgmma_commit(); \
    barrier_wait(BAR(v_full[vr.slot]), vr.phase); \
    product_pv(o, p, v_ring + vr.slot * kTileBytes, add); \
    wgmma_commit(); \
  } while (0)
// The rest of the item takes the second rotation, but a second border, for which the first one is saved.
#ifdef TURN
#define TURN_QUERY() do { \
    if (info & kSave) save_query(q, q_rows + kTileBytes, group); \
    turn_query(q, BAR(angle)); \
  } while (0)
#define END_SECOND() do { } while (0)
#else
#define END_SECOND() RELEASE(q2_empty)
#define TURN_QUERY() do { \
    barrier_wait(BAR(q2_full), q2_phase); \
    q2_phase ^= 1; \
    if (info & kSave) { \
      save_query(q, q_rows + kTileBytes, group); \
    } else { \
      load_query(q, q_rows + kTileBytes); \
      END_SECOND(); \
    } \
  } while (0)
#endif
#define JOIN_SIDES() do { \
    join_sides(s, a, item, info, row_in_tile, q, saved_rows, k_ring + kr.slot * kTileBytes); \
    if (info & kFar) END_SECOND(); \
  } while (0)

__device__ __forceinline__ void consume(const AttendArgs& a, Shared* sh, u32 q_tile, u32 k_ring, u32 v_ring, u32 out_tile,
                                        const TensorMap* map_out) {
  const int group = threadIdx.x / 128 - 1;  // warpgroup 0 or 1
  const int lane = threadIdx.x & 31, warp = (threadIdx.x / 32) & 3;
  const int row_in_tile = group * 64 + warp * 16;
  const u32 q_rows = q_tile + row_in_tile * 128, stage = out_tile + row_in_tile * HEAD_DIM * 2;
  u32 q_phase = 0;
#ifdef BANDS
  const u32 saved_rows = q_tile + kTileBytes + group * 64 * 128;
#ifndef TURN
  u32 q2_phase = 0;
#endif
#endif
  Ring kr = {0, 0}, vr = {0, 0};
#ifdef SOFTCAP
  const float scale_log2 = 1.44269504f;
#else
  const float scale_log2 = a.scale * 1.44269504f;
#endif
  float o[kOut], s[64], rescale[2];
  u32 p[8][4], q[kHalves * 4][4];
  RowState st;
  Item item;
  bool peeked = false;  // `next` was read while an item was open
  Item next;
  while (true) {
    if (!peeked) next = read_item(a, sh, q_phase);
    peeked = false;
    if (next.rows < 0) break;
    item = next;
    if (kZeros || item.rows == 0) clear(o);
    if (item.rows == 0) {
      RELEASE(q_empty);
      st = RowState{{NEG_INF, NEG_INF}, {0.0f, 0.0f}};
      finish(a, item, o, st, scale_log2, stage, map_out, row_in_tile);
      continue;
    }
    // The first scores of an item that has no open one before it.
    barrier_wait(BAR(k_full[kr.slot]), kr.phase);
    u32 info = tile_info(sh, kr.slot, group);
    load_query(q, q_rows);
    RELEASE(q_empty);
#ifdef BANDS
    if (info & kFar) TURN_QUERY();
#endif
    pin(s);
    wgmma_fence();
    product_qk(s, q, k_ring + kr.slot * kTileBytes);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
#ifdef BANDS
    if (info & kBorder) {
      TURN_QUERY();
      JOIN_SIDES();
    }
#endif
    RELEASE_KEYS();
    limit_scores(s, a, item, info, row_in_tile);
    softmax<true>(s, st, rescale, scale_log2);
    pack_scores(p, s);
    bool last_adds;
    while (true) {
      while (!(info & kEnd)) {
        barrier_wait(BAR(k_full[kr.slot]), kr.phase);
        const bool add = adds(info);
        info = tile_info(sh, kr.slot, group);
        MULTIPLY_BOTH(add);
        wgmma_wait<1>();
        pin(s);
        RELEASE_KEYS();
        limit_scores(s, a, item, info, row_in_tile);
        const bool grew = softmax<false>(s, st, rescale, scale_log2);
        hold_wait(st);
        wgmma_wait<0>();
        pin(o);
        RELEASE_VALUES();
        if (grew) scale_rows(o, rescale);
        pack_scores(p, s);
      }
#ifdef BANDS
      if (info & kSides) {  // not in the loop, where the branches would cost every tile 3 %
        if ((info & (kBorder | kTurn)) == kTurn) {
          TURN_QUERY();
          info &= ~(kSides | kTurn);
          continue;
        }
        barrier_wait(BAR(k_full[kr.slot]), kr.phase);
        const bool add = adds(info);
        info = tile_info(sh, kr.slot, group);
        MULTIPLY_BOTH(add);
        wgmma_wait<kCopied ? 0 : 1>();
        pin(s);
        if (info & kTurn) TURN_QUERY();
        wgmma_wait<0>();
        pin(o);
        RELEASE_VALUES();
        JOIN_SIDES();
        RELEASE_KEYS();
        limit_scores(s, a, item, info, row_in_tile);
        if (softmax<false>(s, st, rescale, scale_log2)) scale_rows(o, rescale);
        pack_scores(p, s);
        continue;
      }
#endif
      next = read_item(a, sh, q_phase);
      last_adds = adds(info);
      if (next.rows <= 0) break;
      barrier_wait(BAR(k_full[kr.slot]), kr.phase);
      info = tile_info(sh, kr.slot, group);
      load_query(q, q_rows);
      if (BAND_COUNT == 2 && (info & (kFar | kBorder))) break;  // rare, and not worth the code of a turn here
      // The first scores of the next item and the last product of this one go to the tensor cores together.
      RELEASE(q_empty);
      MULTIPLY_BOTH(last_adds);
      wgmma_wait<1>();
      pin(s);
      RELEASE_KEYS();
      const RowState finished = st;
      limit_scores(s, a, next, info, row_in_tile);
      softmax<true>(s, st, rescale, scale_log2);
      hold_wait(st);
      wgmma_wait<0>();
      pin(o);
      RELEASE_VALUES();
      pack_scores(p, s);
      finish(a, item, o, finished, scale_log2, stage, map_out, row_in_tile);
      item = next;
      if (kZeros) clear(o);
    }
    peeked = true;
    barrier_wait(BAR(v_full[vr.slot]), vr.phase);
    pin(o);
    wgmma_fence();
    product_pv(o, p, v_ring + vr.slot * kTileBytes, last_adds);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    RELEASE_VALUES();
    finish(a, item, o, st, scale_log2, stage, map_out, row_in_tile);
  }
  bulk_wait_read();  // shared memory ends with the block
}

#ifdef TURN
#define ARGUMENTS const __grid_constant__ AttendTurnArgs x
#else
#define ARGUMENTS const __grid_constant__ AttendArgs a
#endif

extern "C" __global__ void __launch_bounds__(384, 1)
    attend(const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_q2,
           const __grid_constant__ TensorMap map_k, const __grid_constant__ TensorMap map_v,
           const __grid_constant__ TensorMap map_out, ARGUMENTS) {
#ifdef TURN
  const AttendArgs& a = x.a;
#endif
  extern __shared__ char memory[];  // <= 1023 to align, the tiles, Shared
  const u32 base = (shared_address(memory) + 1023) & ~1023u;
  const u32 q_tile = base, k_ring = q_tile + BAND_COUNT * kTileBytes, v_ring = k_ring + kStages * kTileBytes;
  const u32 out_tile = v_ring + kStages * kTileBytes;
  Shared* sh = (Shared*)(memory + (out_tile + kTileBytes - shared_address(memory)));
  if (threadIdx.x == 0) {
    barrier_init(BAR(q_full), 1);
    barrier_init(BAR(q_empty), 8);
    barrier_init(BAR(q2_full), 1);
    barrier_init(BAR(q2_empty), 8);
    barrier_init(BAR(v_raw), 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(BAR(k_full[i]), 1);
      barrier_init(BAR(k_empty[i]), 8);
      barrier_init(BAR(v_full[i]), 1);
      barrier_init(BAR(v_empty[i]), 8);
    }
    for (int i = 0; i < kPlans; ++i) {
      barrier_init(BAR(plan_full[i]), 32);
      barrier_init(BAR(plan_empty[i]), 2);
    }
    fence_barrier_init();
  }
#ifdef TURN
  if (threadIdx.x < kMostPairs)
    for (int i = 0; i < 2; ++i) sh->angle[threadIdx.x][i] = x.turn[threadIdx.x][i];
#endif
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_give<40>();
    if (threadIdx.x >= 32 && threadIdx.x < 64) plan_items(a, sh);
    if (threadIdx.x < 32) produce(a, sh, k_ring, v_ring, &map_k, &map_v);
    if (threadIdx.x == 64) produce_queries(a, sh, q_tile, &map_q, &map_q2);
  } else {
    registers_take<232>();
    consume(a, sh, q_tile, k_ring, v_ring, out_tile, &map_out);
  }
}
