// What the Go side needs beside the tables: memory, rotations, merging.
#ifndef TRIVIUM_SUPPORT_H
#define TRIVIUM_SUPPORT_H

#include "kernels.h"

// The tables of this build.
const trivium_kernels *const *trivium_tables(int *count);

// 64-byte aligned memory, not cleared; NULL: none left.
void *trivium_alloc(size_t bytes);
void trivium_free(void *memory);

typedef struct {
    const double *inv_freq, *applied; // [half] radians per token
    double scale, offset, limit;
    int64_t modulo, group;
    int32_t half;
} trivium_rule;

// Writes cosines and sines of inv_freq*rule(m) - applied*m for the positions
// m = position .. position+rows-1: [rows, half, 2].
void trivium_rotation_rows(const trivium_rule *rule, int64_t position, int64_t rows, float *table);

// Writes output and lse of a from its parts: a->partial is [parts, rows, value_dim + 1].
void trivium_merge(const trivium_attend *a, int64_t parts);

// Calls through the table, which Go cannot make.
static inline int trivium_supported(const trivium_kernels *k) { return k->supported(); }
static inline int trivium_halves(const trivium_kernels *k, const trivium_problem *p) { return k->halves && k->halves(p); }
// Whether a problem is scored faster by the same one without values, whose keys are packed in another way.
static inline int trivium_scored_apart(const trivium_kernels *k, const trivium_problem *p) {
    trivium_problem scores = *p;
    scores.value_dim = 0;
    return trivium_halves(k, &scores) && !trivium_halves(k, p);
}
static inline size_t trivium_pack_bytes(const trivium_kernels *k, const trivium_problem *p, int64_t rows) { return k->pack_bytes(p, rows); }
static inline size_t trivium_scratch_bytes(const trivium_kernels *k, const trivium_problem *p, int64_t keys) { return k->scratch_bytes(p, keys); }
static inline void trivium_pack(const trivium_kernels *k, const trivium_problem *p, const trivium_keys *keys, int64_t first, int64_t rows) { k->pack(p, keys, first, rows); }
static inline void trivium_run_attend(const trivium_kernels *k, const trivium_attend *a, int32_t count, void *scratch) { k->attend(a, count, scratch); }
static inline void trivium_run_representative(const trivium_kernels *k, const trivium_representative *r, void *scratch) { k->representative(r, scratch); }
static inline void trivium_run_row_mass(const trivium_kernels *k, const trivium_row_mass *r, int32_t count, void *scratch) { k->row_mass(r, count, scratch); }
static inline void trivium_run_square_mass(const trivium_kernels *k, const trivium_square_mass *s, void *scratch) { k->square_mass(s, scratch); }
static inline void trivium_run_column_score(const trivium_kernels *k, const trivium_column_score *s, void *scratch) { k->column_score(s, scratch); }
static inline void trivium_run_rest(const trivium_kernels *k, const trivium_rest *r, void *scratch) { k->rest(r, scratch); }
static inline void trivium_run_pool(const trivium_kernels *k, const trivium_pool *p) { k->pool(p); }
static inline void trivium_run_dots(const trivium_kernels *k, const float *a, int64_t rows, const float *b, int64_t keys, int64_t dim, float *product) { k->dots(a, rows, b, keys, dim, product); }
static inline void trivium_run_levels(const trivium_kernels *k, const trivium_levels *l) { k->tile_levels(l); }
static inline void trivium_run_sum(const trivium_kernels *k, const trivium_sum *s, void *scratch) { k->weighted_sum(s, scratch); }
static inline void trivium_run_products(const trivium_kernels *k, const trivium_products *p, void *scratch) { k->products(p, scratch); }
static inline void trivium_run_magnitudes(const trivium_kernels *k, const trivium_magnitudes *m, void *scratch) { k->magnitudes(m, scratch); }
static inline void trivium_run_sparse(const trivium_kernels *k, const trivium_sparse *s, void *scratch) { k->sparse(s, scratch); }
static inline void trivium_run_ranked(const trivium_kernels *k, const trivium_ranked *r, void *scratch) { k->ranked(r, scratch); }
static inline void trivium_run_variances(const trivium_kernels *k, const trivium_variances *v, void *scratch) { k->variances(v, scratch); }
static inline void trivium_run_squares(const trivium_kernels *k, const trivium_squares *s, void *scratch) { k->squares(s, scratch); }
static inline void trivium_run_majority(const trivium_kernels *k, const trivium_majority *m, void *scratch) { k->majority(m, scratch); }
static inline size_t trivium_ranked_bytes(int32_t sources) { return TRIVIUM_RANKED_BYTES(sources); }

#endif
