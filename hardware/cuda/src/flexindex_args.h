// Arguments of the FlexPrefill index, read by the kernels and, through cgo, by the host.
// Heads run over batch x q_heads; n keys in `blocks` blocks of `block` (64 or 128) tokens. The queries are the last ones,
// from position q_offset on, in q_blocks blocks from first_block on.
#ifndef TRIVIUM_FLEXINDEX_ARGS_H
#define TRIVIUM_FLEXINDEX_ARGS_H

#include "device_pointer.h"

enum { kFlexHeads = 256 };              // most query heads
enum { kParts = 8 };                    // partial sums of a tile, one for each warp
enum { kBins1 = 2048, kBins2 = 1024 };  // bits 30..20, then 19..10, then 9..0 of a non-negative float

typedef struct IndexState {  // one of the two threshold searches of a head
  double above_sum;  // sum of the values above the range still in question
  unsigned int above_count, prefix, done, complete;
} IndexState;

typedef struct IndexArgs {
  DEVICE(const void) q;                      // [batch, q_heads, n, d], strides below in elements, d contiguous
  DEVICE(const void) k;                      // [batch, kv_heads, n, d]
  DEVICE(const void) q2;                     // the queries for distances from band on, shaped as q; null: one rotation for all
  DEVICE(float) partial;                     // [heads, splits, block, 2]: running maximum and sum of each probe row, log2 units
  DEVICE(float) scores;                      // [heads, block, n], only for the plain kernels
  DEVICE(float) vertical;                    // [heads, n]: mean probability of each key
  DEVICE(float) slash;                       // [heads, n]: mean probability at each distance
  DEVICE(float) k_mean;                      // [batch, kv_heads, blocks, d]
  DEVICE(float) estimate_part;               // [heads, blocks, kParts]: sums of the raw scores of a tile, tensor-core kernels only
  DEVICE(float) v_part;                      // [heads, blocks, kParts]: sums of its probabilities, tensor-core kernels only
  DEVICE(float) v_pool;                      // [heads, blocks]
  DEVICE(float) s_pool;                      // [heads, blocks], by block offset
  DEVICE(float) estimate;                    // [heads, blocks]: softmax of the mean probe against the pooled keys
  DEVICE(float) js;                          // [heads]: square root of the Jensen-Shannon divergence
  DEVICE(int) aware;                         // [heads]: 1 = query-aware
  DEVICE(float) block_p;                     // [heads, tiles]: row-wise softmax of pooled scores, query-aware heads only
  DEVICE(unsigned int) hist_count;           // [3, 2 heads, kBins1]
  DEVICE(unsigned long long) hist_low;       // [3, 2 heads, kBins1]: sums of the low bits
  DEVICE(IndexState) state;                  // [2 heads]
  DEVICE(unsigned int) done;                 // [heads + 1]: blocks finished, left zero
  DEVICE(unsigned int) v_bits;               // [heads, words]
  DEVICE(unsigned int) s_bits;               // [heads, words + 1], from the largest block offset down
  DEVICE(int) row_ptr;                       // [heads * q_blocks + 1]
  DEVICE(int) cols;                          // capacity heads * tiles, the causal tiles of the query blocks
  long long q_batch, q_head, q_row, q2_batch, q2_head, q2_row, k_batch, k_head, k_row;
  int batch, q_heads, kv_heads, n, d, block, blocks, splits, tiles_per_split, words;
  int min_blocks, max_blocks;
  int q_offset, first_block, q_blocks;
  int rule;               // 0: as the released code, 1: fixed (budgets in blocks of `block`, diagonals cut at its multiples, 0 log 0 = 0),
                          // 2: the paper's, by token, and the tile that crosses gamma; budgets as in 1
  int interleave;         // query head h reads key head h % kv_heads
  int band, window;       // window: keys at this distance and beyond are not seen; 0: none
  float scale, softcap;   // softcap: 0: none
  float gamma[kFlexHeads], tau[kFlexHeads];  // of each query head
} IndexArgs;

#endif
