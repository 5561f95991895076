// Arguments of the kernel that stores sequences: they travel in the launch, so that nothing waits for a copy.
#ifndef TRIVIUM_TABLE_ARGS_H
#define TRIVIUM_TABLE_ARGS_H

#include "attend_args.h"

enum { kTableRows = 64 };

typedef struct TableArgs {
  DEVICE(Sequence) table;
  int count;
  Sequence rows[kTableRows];
} TableArgs;

#endif
