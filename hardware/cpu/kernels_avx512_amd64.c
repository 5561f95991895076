// AVX-512 (F, BW, DQ, VL): attention in tiles of float32.
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
