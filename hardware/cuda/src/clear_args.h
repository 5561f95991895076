// Arguments of the kernel over rows that see nothing, read by the kernel and, through cgo, by the host.
#ifndef TRIVIUM_CLEAR_ARGS_H
#define TRIVIUM_CLEAR_ARGS_H

#include "device_pointer.h"

typedef struct ClearArgs {
  DEVICE(void) out;     // rows of one batch entry, 16 bits an element, dim contiguous
  DEVICE(float) lse;
  long long out_head, out_row, lse_head;
  int first, dim;       // the first row; the grid counts rows and heads
} ClearArgs;

#endif
