// AVX-512 (F, BW, DQ, VL): attention in tiles of float32, whatever the inputs
// are. Shapes: all of the contract; head_dim need not be a multiple of anything.
//
// Tried on a Xeon of model 207 (Emerald Rapids), one thread, 8k causal, d = 128:
//   6 rows by 4 vectors in registers    151 - 177 GFLOP/s of 174, sgemm of PyTorch 132
//   register block as an array of       48: the compiler keeps it in memory; its
//   variable length                     size must be a constant
//   half depth at a time (16 KiB of     no gain
//   keys in the first-level cache)
//   asking for the next panels early    no gain; AMX, five times faster, needs it
//   keys and values in one area         representative rows 5 % slower
//   vdpbf16ps for bfloat16              not done: one a cycle here, as many products
//                                       as two float32 fused multiply-adds
// In all 142 - 149 GFLOP/s dense: exponentials and maxima take 6 %.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "avx512.h"

#define NAME(x) x##_avx512
#define ROW_STEP 6
#define PANEL_STEP 4

#include "elements.h"
#include "products.h"
#include "tiles.h"
#include "sums.h"

static int supported_avx512(void) { return has_avx512(); }

TABLE(avx512, 20);
