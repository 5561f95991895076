// Element types: to double, and from double with one rounding to the nearest
// even. Clear and slow; the vector files have their own.
#ifndef TRIVIUM_NUMBERS_H
#define TRIVIUM_NUMBERS_H

#include <math.h>
#include <string.h>
#include "kernels.h"

typedef struct {
    int exponent_bits, mantissa_bits;
    int infinite; // 0: the highest exponent holds numbers, all ones alone is NaN
} number_format;

static inline number_format format_of(int dtype) {
    switch (dtype) {
    case TRIVIUM_BFLOAT16: return (number_format){8, 7, 1};
    case TRIVIUM_FLOAT16: return (number_format){5, 10, 1};
    case TRIVIUM_FLOAT8_E4M3: return (number_format){4, 3, 0};
    default: return (number_format){5, 2, 1}; // TRIVIUM_FLOAT8_E5M2
    }
}

static inline int dtype_bytes(int dtype) {
    switch (dtype) {
    case TRIVIUM_FLOAT64: return 8;
    case TRIVIUM_FLOAT32: return 4;
    case TRIVIUM_BFLOAT16: case TRIVIUM_FLOAT16: return 2;
    default: return 1;
    }
}

static inline double decode_bits(unsigned bits, number_format f) {
    int bias = (1 << (f.exponent_bits - 1)) - 1, top = (1 << f.exponent_bits) - 1, ones = (1 << f.mantissa_bits) - 1;
    int e = bits >> f.mantissa_bits & top, m = bits & ones;
    double sign = bits >> (f.exponent_bits + f.mantissa_bits) & 1 ? -1 : 1;
    if (e == top && f.infinite) return m ? NAN : sign * INFINITY;
    if (e == top && m == ones && !f.infinite) return NAN;
    if (e == 0) return sign * ldexp(m, 1 - bias - f.mantissa_bits);
    return sign * ldexp(m + ones + 1, e - bias - f.mantissa_bits);
}

static inline unsigned encode_bits(double x, number_format f) {
    int bias = (1 << (f.exponent_bits - 1)) - 1, top = (1 << f.exponent_bits) - 1, ones = (1 << f.mantissa_bits) - 1;
    unsigned sign = (unsigned)(signbit(x) != 0) << (f.exponent_bits + f.mantissa_bits);
    unsigned infinity = (unsigned)top << f.mantissa_bits;
    unsigned nan = f.infinite ? infinity | 1u << (f.mantissa_bits - 1) : infinity | (unsigned)ones;
    if (isnan(x)) return sign | nan;
    if (x == 0) return sign;
    if (isinf(x)) return sign | (f.infinite ? infinity : nan);
    int e;
    frexp(x, &e);
    int exponent = e - 1 < 1 - bias ? 1 - bias : e - 1; // subnormals share the lowest exponent
    double steps = rint(ldexp(fabs(x), f.mantissa_bits - exponent)); // ties to even
    // Carrying into the exponent field is what rounding up to a power of two means.
    double bits = steps + ldexp(exponent + bias - 1, f.mantissa_bits);
    if (f.infinite && bits >= infinity) return sign | infinity;
    if (!f.infinite && bits >= nan) return sign | nan;
    return sign | (unsigned)bits;
}

static inline double load_number(const void *data, int dtype, int64_t i) {
    switch (dtype) {
    case TRIVIUM_FLOAT64: return ((const double *)data)[i];
    case TRIVIUM_FLOAT32: return ((const float *)data)[i];
    case TRIVIUM_BFLOAT16: case TRIVIUM_FLOAT16: return decode_bits(((const uint16_t *)data)[i], format_of(dtype));
    default: return decode_bits(((const uint8_t *)data)[i], format_of(dtype));
    }
}

static inline void store_number(void *data, int dtype, int64_t i, double x) {
    if (isnan(x)) x = NAN;
    switch (dtype) {
    case TRIVIUM_FLOAT64: ((double *)data)[i] = x; break;
    case TRIVIUM_FLOAT32: ((float *)data)[i] = (float)x; break;
    case TRIVIUM_BFLOAT16: case TRIVIUM_FLOAT16: ((uint16_t *)data)[i] = (uint16_t)encode_bits(x, format_of(dtype)); break;
    default: ((uint8_t *)data)[i] = (uint8_t)encode_bits(x, format_of(dtype));
    }
}

// a * b, rounded: the compiler may fuse a plain product with the sum it goes into.
static inline double product_of(double a, double b) { return __builtin_fma(a, b, -0.0); }

// Merges a row with its rest: outputs [value_dim], then the lse without weight.
static inline void add_rest(const trivium_rest *c, int64_t row, const float *rest) {
    int dim = c->head->problem->value_dim;
    double more = (double)rest[dim] + c->weight, lse = c->lse[row];
    if (lse == -INFINITY || more == -INFINITY) return;
    double top = fmax(lse, more), all = top + log(exp(lse - top) + exp(more - top)), kept = exp(lse - all), added = exp(more - all);
    for (int j = 0; j < dim; j++) {
        int64_t at = row * c->output.stride + j;
        store_number(c->output.data, c->output.dtype, at, kept * load_number(c->output.data, c->output.dtype, at) + added * rest[j]);
    }
    c->lse[row] = (float)all;
}

#endif
