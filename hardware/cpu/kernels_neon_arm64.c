// NEON (ARMv8.0 with half-precision conversion): attention in tiles of float32,
// 6 rows by 16 columns in 24 of the 32 registers. Checked under qemu, never
// timed on a machine of its own.
#include <arm_neon.h>
#include <stdint.h>

#define NAME(x) x##_neon
#define LANES 4
#define ROW_STEP 6
#define PANEL_STEP 1
typedef float32x4_t vf;
#define VF static inline __attribute__((always_inline))

VF vf vf_set1(float x) { return vdupq_n_f32(x); }
VF vf vf_load(const float *p) { return vld1q_f32(p); }
VF void vf_store(float *p, vf x) { vst1q_f32(p, x); }
VF vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
VF vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
VF vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
VF vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
VF vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
VF vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
VF vf vf_abs(vf a) { return vabsq_f32(a); }
VF vf vf_copysign(vf a, vf b) { return vbslq_f32(vdupq_n_u32(0x80000000), b, a); }
VF vf vf_select_below(vf a, vf b, vf below, vf other) { return vbslq_f32(vcltq_f32(a, b), below, other); }
VF int vf_any_above(vf a, vf b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
VF float vf_highest(vf a) { return vmaxvq_f32(a); }
VF float vf_total(vf a) { return vaddvq_f32(a); }
VF vf vf_fraction(vf x) {
    x = vmaxq_f32(x, vdupq_n_f32(-127));
    return vsubq_f32(x, vrndmq_f32(x));
}
// y * 2^floor(x), 0 for x below -126.
VF vf vf_scale(vf y, vf x) {
    int32x4_t e = vcvtmq_s32_f32(vmaxq_f32(x, vdupq_n_f32(-127)));
    vf power = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
    return vbslq_f32(vcltq_f32(x, vdupq_n_f32(-126)), vdupq_n_f32(0), vmulq_f32(y, power));
}
VF vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
VF vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
VF float64x2_t vf_low(vf x) { return vcvt_f64_f32(vget_low_f32(x)); } // the first half in float64
VF float64x2_t vf_high(vf x) { return vcvt_high_f64_f32(x); }
VF void vf_store_f16(uint16_t *p, vf x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
// To the nearest even; NaN is 0x7fc0.
VF void vf_store_bf16(uint16_t *p, vf x) {
    uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t up = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint32x4_t nan = vdupq_n_u32(0x7fc0);
    vst1_u16(p, vmovn_u32(vbslq_u32(vceqq_f32(x, x), up, nan)));
}
VF void vf_transpose(vf r[4]) {
    float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

#include "elements.h"
#include "products.h"
#include "tiles.h"
#include "sums.h"

static int supported_neon(void) { return 1; } // part of every arm64

TABLE(neon, 10);
