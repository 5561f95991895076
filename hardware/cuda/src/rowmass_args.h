// Arguments of the kernels that measure rows for choosing on the host, read by the kernels and, through cgo, by the host.
#ifndef TRIVIUM_ROWMASS_ARGS_H
#define TRIVIUM_ROWMASS_ARGS_H

#include "device_pointer.h"

typedef struct RowMassArgs {
  DEVICE(const void) q;    // [batch, q_heads, q_len, head_dim], strides below in elements
  DEVICE(const void) q2;   // for distances from band on; null: one rotation for all
  DEVICE(const void) k;    // [batch, kv_heads, k_len, head_dim]
  DEVICE(const int) sets;  // [groups]: batch entry * q_heads + query head
  DEVICE(const int) rows;  // [groups, count]: query rows, < 0: none
  DEVICE(float) mass;      // [groups, count, k_blocks]: LSE in log2 units, then the share of the row's softmax
  DEVICE(float) lse;       // [groups, count]: natural logarithm, sinks not included
  long long q_batch, q_head, q_row, q2_batch, q2_head, q2_row, k_batch, k_head, k_row;
  int q_heads, kv_heads, k_len, k_blocks, q_offset, head_dim, groups, count;
  int chunk;               // key blocks of a block of threads
  int band, window, full;  // window: 0: none; full: not causal
  float scale, softcap;    // softcap: 0: none
} RowMassArgs;

typedef struct PoolArgs {
  DEVICE(const void) x;   // [batch, heads, rows, head_dim]
  DEVICE(float) mean;     // [batch, heads, blocks, head_dim]
  long long batch_stride, head_stride, row_stride;
  int heads, rows, offset, head_dim;
  int block, first, blocks;  // tokens of a block; the block of the first row, counted from position 0
} PoolArgs;

#endif
