// Arguments of the decode kernel and of the coverage probe, read by the kernels and, through cgo, by the host.
#ifndef TRIVIUM_DECODE_ARGS_H
#define TRIVIUM_DECODE_ARGS_H

#include "attend_args.h"

typedef struct DecodeArgs {
  AttendPlainArgs x;             // skip is 0 here, and there is no mask
  DEVICE(float) partial;         // [groups, row_tiles, splits, 16, HEAD_DIM]: sums relative to their maximum; a group is a
                                 // sequence and a key head
  DEVICE(float) partial_rows;    // [groups, row_tiles, splits, rows of a tile, 2]: maximum (log2 units) and sum of each row
  DEVICE(unsigned int) done;     // [groups, row_tiles]: splits finished, left zero
  DEVICE(const int) probe_rows;  // PROBE: [sequences, q_heads, probes] query rows, < 0: none; a group is a sequence and a query head
  DEVICE(float) dense;           // PROBE: [sequences, q_heads, probes] LSE over every visible key, sinks not included
  DEVICE(float) kept;            // PROBE: the share of that mass which the LSE of the kernel holds
  int splits, row_tiles, probes;
} DecodeArgs;

#endif
