// Which keys a query sees, and which band a pair lies in.
#ifndef TRIVIUM_VISIBLE_H
#define TRIVIUM_VISIBLE_H

#include "kernels.h"

static inline int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

// The query at position m sees the keys [first_visible, last_visible) of its sequence.
static inline int64_t first_visible(const trivium_problem *p, int64_t m) {
    return p->window ? max_i64(0, m - p->window + 1) : 0;
}
static inline int64_t last_visible(const trivium_problem *p, int64_t m, int64_t keys) {
    return p->causal ? max_i64(0, min_i64(m + 1, keys)) : keys;
}

static inline int in_band(const trivium_band *b, int64_t m, int64_t n) {
    int64_t d = floor_div(m, b->chunk) - floor_div(n, b->chunk);
    return b->low <= d && (d < b->high || b->high == INT64_MAX);
}

static inline int cancelled(const trivium_problem *p) { return __atomic_load_n(p->cancel, __ATOMIC_RELAXED); }

#endif
