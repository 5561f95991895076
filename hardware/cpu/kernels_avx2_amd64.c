// AVX2 with FMA and F16C: attention in tiles of float32, whatever the inputs
// are, 6 rows by 2 vectors in 12 of the 16 registers. Shapes: all of the
// contract. On a Xeon of model 207 (Emerald Rapids), one thread, 8k causal,
// d = 128: 68 GFLOP/s of 94.
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#include <stdint.h>

#define NAME(x) x##_avx2
#define LANES 8
#define ROW_STEP 6
#define PANEL_STEP 1
typedef __m256 vf;
#define VF static inline __attribute__((always_inline))

VF vf vf_set1(float x) { return _mm256_set1_ps(x); }
VF vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
VF void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
VF vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
VF vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
VF vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
VF vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
VF vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
VF vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
VF vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
VF vf vf_copysign(vf a, vf b) { // a, not negative, with the sign of b
    return _mm256_or_ps(a, _mm256_and_ps(b, _mm256_set1_ps(-0.0f)));
}
VF vf vf_select_below(vf a, vf b, vf below, vf other) { return _mm256_blendv_ps(other, below, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
VF int vf_any_above(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
VF float vf_highest(vf a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
VF float vf_total(vf a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
VF vf vf_fraction(vf x) { return _mm256_sub_ps(x, _mm256_floor_ps(_mm256_max_ps(_mm256_set1_ps(-127), x))); }
// y * 2^floor(x), 0 for x below -126.
VF vf vf_scale(vf y, vf x) {
    __m256i e = _mm256_cvttps_epi32(_mm256_floor_ps(_mm256_max_ps(_mm256_set1_ps(-127), x)));
    vf power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    return _mm256_and_ps(_mm256_mul_ps(y, power), _mm256_cmp_ps(x, _mm256_set1_ps(-126), _CMP_NLT_UQ));
}
VF vf vf_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
VF vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
VF __m256d vf_low(vf x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); } // the first half in float64
VF __m256d vf_high(vf x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
VF void vf_store_f16(uint16_t *p, vf x) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
// To the nearest even; NaN is 0x7fc0.
VF void vf_store_bf16(uint16_t *p, vf x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_set1_epi32(0x7fc0);
    up = _mm256_blendv_epi8(up, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1)));
}
VF void vf_transpose(vf r[8]) {
    vf t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

#include "elements.h"
#include "products.h"
#include "tiles.h"
#include "sums.h"

static int supported_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

TABLE(avx2, 10);
