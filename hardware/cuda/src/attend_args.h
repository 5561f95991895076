// Arguments of the attention kernels, read by the kernels and, through cgo, by the host.
#ifndef TRIVIUM_ATTEND_ARGS_H
#define TRIVIUM_ATTEND_ARGS_H

#include "device_pointer.h"

// One sequence of a packed or padded batch, in rows of the tensors and in tokens. Its query blocks lie on multiples of 128
// positions: `skip` rows before its first query complete the first block, and q_row, q_len and q_offset count from there.
typedef struct Sequence {
  int q_row, q_len, k_row, k_len, q_offset;
  int skip;  // rows below this belong to nobody
  int box;   // entry of the tensors' batch axis
  int unused;
} Sequence;

typedef struct AttendArgs {
  DEVICE(void) out;                  // [batch, q_heads, q_len, head_dim], strides below in elements
  DEVICE(float) lse;                 // [batch, q_heads, q_len], natural logarithm
  DEVICE(const int) row_ptr;         // CSR over (batch, head, query block); null: every causal tile
  DEVICE(const int) cols;            // ascending key blocks of each row
  DEVICE(const Sequence) sequences;  // [batch]; null: every entry of the batch axis has q_len, k_len, q_offset, skip
  DEVICE(const float) sinks;         // [q_heads] logits, SINKS only
  DEVICE(unsigned int) counter;      // two words, zero before the first launch; every launch leaves them zero
  long long out_batch, out_head, out_row, lse_batch, lse_head;
  int batch, q_heads, kv_heads, q_blocks, q_len, k_len, q_offset, skip;
  int head_dim;                      // of the tensors; columns from here to HEAD_DIM are zeros
  int k_rows;                        // of the key and value tensors
  int band;                          // distances >= band use the second rotation (BANDS)
  int window;                        // keys at distance >= window are dropped (WINDOW)
  float scale, softcap;
} AttendArgs;

enum { kMostPairs = 64 };

// For the kernel for sm_90a that makes the second rotation of the first (TURN).
typedef struct AttendTurnArgs {
  AttendArgs a;
  float turn[kMostPairs][2];  // cosine and sine for each pair; 1 and 0 for what is not turned
} AttendTurnArgs;

// For the kernel without TMA: the inputs, [batch, heads, rows, head_dim], strides in elements.
typedef struct AttendPlainArgs {
  AttendArgs a;
  DEVICE(const void) q;
  DEVICE(const void) q2;             // the second rotation (BANDS)
  DEVICE(const void) k;
  DEVICE(const void) v;
  long long q_batch, q_head, q_row, q2_batch, q2_head, q2_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
} AttendPlainArgs;

#endif
