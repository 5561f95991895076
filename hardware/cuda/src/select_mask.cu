// The last two launches of a selector: row starts, then columns.
#include "csr.cuh"
#include "select_args.h"

// One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) select_prefix(const __grid_constant__ SelectArgs a) {
  prefix_rows(a.row_ptr, a.batch * a.q_heads * a.q_blocks);
}

// A warp for each row: grid ceil(rows / 32), 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) select_fill(const __grid_constant__ SelectArgs a) {
  const int row = blockIdx.x * 32 + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (row >= a.batch * a.q_heads * a.q_blocks) return;
  int at = a.row_ptr[row];
  for (int w = 0; w < a.words; w += 32)
    at = store_columns(w + lane < a.words ? a.bits[(long long)row * a.words + w + lane] : 0, (w + lane) * 32, a.cols, at);
}
