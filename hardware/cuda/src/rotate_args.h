// Arguments of the kernel that rotates queries to other positions, read by the kernel and, through cgo, by the host.
#ifndef TRIVIUM_ROTATE_ARGS_H
#define TRIVIUM_ROTATE_ARGS_H

#include "attend_args.h"

// Rows at position p arrive rotated by applied[i] p and leave rotated by wanted[i] f(p), where
// f(p) = min(scale floor((p mod modulo) / group) + offset, limit); modulo 0 and limit 0: none.
typedef struct RotateArgs {
  DEVICE(const void) in;             // [batch, heads, rows, head_dim], strides in elements
  DEVICE(void) out;
  DEVICE(const Sequence) sequences;  // null: one for each batch entry
  long long in_batch, in_head, in_row, out_batch, out_head, out_row, modulo, group;
  double scale, offset, limit;
  double applied[kMostPairs], wanted[kMostPairs];
  int batch, heads, rows, q_offset, head_dim, pairs, interleaved;
  int from;                          // positions below this are left alone
} RotateArgs;

#endif
