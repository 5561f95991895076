// Arguments of the selectors that judge every query block by itself (FlashPrefill, XAttention), read by the kernels and,
// through cgo, by the host. Blocks are 128 tokens on multiples of 128 in position; heads run over batch x q_heads.
#ifndef TRIVIUM_SELECT_ARGS_H
#define TRIVIUM_SELECT_ARGS_H

#include "device_pointer.h"

enum { kMostHeads = 256 };  // query heads with a parameter of their own

typedef struct SelectArgs {
  DEVICE(const void) q;           // [batch, q_heads, q_len, head_dim], strides below in elements
  DEVICE(const void) k;           // [batch, kv_heads, k_len, head_dim]
  DEVICE(void) pooled;            // FlashPrefill: [2, batch, kv_heads, k_blocks rounded up to 128, HEAD_DIM]: means, and what rounding lost
  DEVICE(float) scores;           // FlashPrefill: [heads, q_blocks, k_blocks], log2, null: by position alone; XAttention: [grid, 128, k_blocks]
  DEVICE(unsigned int) bits;      // [heads, q_blocks, words]: kept key blocks
  DEVICE(int) row_ptr;            // [heads * q_blocks + 1]
  DEVICE(int) cols;
  DEVICE(unsigned int) counter;   // two words, zero between launches
  long long q_batch, q_head, q_row, k_batch, k_head, k_row;
  int batch, q_heads, kv_heads, q_len, k_len, q_offset, head_dim;
  int first_block;                // of the queries
  int q_blocks, k_blocks, words, chunk;
  int window;                     // 0: none
  int sinks, near, last, fewest;  // FlashPrefill, in blocks
  float scale, softcap;           // softcap: FlashPrefill, 0: none
  float parameter[kMostHeads];    // alpha or threshold of each query head
} SelectArgs;

#endif
