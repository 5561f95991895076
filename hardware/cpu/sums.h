// Means of rows, what is made of them, and weighted sums of checkpoints, for every instruction set, included after
// tiles.h. Elements go by short steps that stay in the cache: a source is decoded
// once for up to CANDIDATES results. Same bytes as serial: the same fused
// multiply-adds in the same order.
#include "means.h"

// SOURCES and CANDIDATES at a time; their numbers of one step, 16 + 32 KiB for
// eight sources and sixteen candidates, are in the first and second-level cache.
enum { STEP = 512, SOURCES = 16, CANDIDATES = 16, BLOCK_ROWS = 4, BLOCK_STEP = 4 * LANES, POOL_STEP = 8 };

typedef union { float narrow[STEP]; double wide[STEP]; } step_numbers;

typedef struct {
    float x[SOURCES][STEP];
    step_numbers sum[CANDIDATES];
    double wide[STEP];
    float floats[STEP];
    uint16_t halves[STEP];
} sum_scratch;

static void decode_bf16(float *to, const uint16_t *from, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_bf16(from + i));
    for (; i < n; i++) to[i] = (float)load_number(from, TRIVIUM_BFLOAT16, i);
}

static void decode_f16(float *to, const uint16_t *from, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_f16(from + i));
    for (; i < n; i++) to[i] = (float)load_number(from, TRIVIUM_FLOAT16, i);
}

// An 8-bit float is the upper half of a float16, after a shift and, for e4m3,
// a factor for the difference in bias.
static void decode_f8(float *to, const uint8_t *from, int n, int e4m3, uint16_t *halves) {
    for (int i = 0; i < n; i++) halves[i] = (uint16_t)(e4m3 ? (from[i] & 0x80) << 8 | (from[i] & 0x7f) << 7 : from[i] << 8);
    decode_f16(to, halves, n);
    for (int i = 0; i < n && e4m3; i++) to[i] = (from[i] & 0x7f) == 0x7f ? NAN : to[i] * 256;
}

static int64_t count_nonfinite(const float *x, int n) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        count += (bits & 0x7fffffff) >= 0x7f800000;
    }
    return count;
}

// Decodes n elements of a vector from first on.
static void decode(float *to, const void *data, int dtype, int64_t first, int n, uint16_t *halves) {
    const char *from = (const char *)data + first * dtype_bytes(dtype);
    switch (dtype) {
    case TRIVIUM_FLOAT64: for (int i = 0; i < n; i++) to[i] = (float)((const double *)from)[i]; break;
    case TRIVIUM_FLOAT32: memcpy(to, from, sizeof(float) * n); break;
    case TRIVIUM_BFLOAT16: decode_bf16(to, (const uint16_t *)from, n); break;
    case TRIVIUM_FLOAT16: decode_f16(to, (const uint16_t *)from, n); break;
    default: decode_f8(to, (const uint8_t *)from, n, dtype == TRIVIUM_FLOAT8_E4M3, halves);
    }
}

// The number of those not finite. A float64 beyond float32 is finite.
static int64_t not_finite(float *floats, const void *data, int dtype, int64_t first, int n, uint16_t *halves) {
    if (dtype == TRIVIUM_FLOAT64) {
        const double *x = (const double *)data + first;
        int64_t count = 0;
        for (int i = 0; i < n; i++) count += !isfinite(x[i]);
        return count;
    }
    decode(floats, data, dtype, first, n, halves);
    return count_nonfinite(floats, n);
}

// To float32, but such that rounding it once more is rounding x once: cut off,
// with the last bit set when something was lost.
// No jumps, so that the compiler takes vectors of it.
static inline float round_to_odd(double x) {
    float y = (float)x;
    uint32_t bits;
    memcpy(&bits, &y, sizeof bits);
    uint32_t away = fabs((double)y) > fabs(x), lost = (y != x) & (x == x);
    uint32_t odd = (bits - away) | 1;
    bits ^= (bits ^ odd) & -lost;
    memcpy(&y, &bits, sizeof y);
    return y;
}

// Stores n elements, in float64 when wide. floats is scratch, and may be x.
static void encode(void *data, int dtype, int64_t first, int n, const step_numbers *x, int wide, float *floats) {
    int i = 0;
    char *to = (char *)data + first * dtype_bytes(dtype);
    const float *from = wide ? floats : x->narrow;
    if (wide && dtype != TRIVIUM_BFLOAT16 && dtype != TRIVIUM_FLOAT16) {
        for (; i < n; i++) store_number(to, dtype, i, x->wide[i]);
        return;
    }
    if (wide)
        for (int j = 0; j < n; j++) floats[j] = round_to_odd(x->wide[j]);
    if (dtype == TRIVIUM_BFLOAT16) {
        for (; i + LANES <= n; i += LANES) vf_store_bf16((uint16_t *)to + i, vf_load(from + i));
    } else { // NaN without sign and payload
        for (int j = 0; j < n; j++) floats[j] = from[j] != from[j] ? NAN : from[j];
        from = floats;
    }
    switch (dtype) {
    case TRIVIUM_FLOAT32: memcpy(to, from, sizeof(float) * n); return;
    case TRIVIUM_FLOAT16: for (; i + LANES <= n; i += LANES) vf_store_f16((uint16_t *)to + i, vf_load(from + i)); break;
    }
    for (; i < n; i++) store_number(to, dtype, i, from[i]);
}

// LANES elements of a source from i on.
INLINE vf load_source(int dtype, const void *data, int64_t i) {
    switch (dtype) {
    case TRIVIUM_BFLOAT16: return vf_load_bf16((const uint16_t *)data + i);
    case TRIVIUM_FLOAT16: return vf_load_f16((const uint16_t *)data + i);
    default: return vf_load((const float *)data + i);
    }
}

// The mean of rows [row, last) in the columns [j, j + N*LANES), whose sums stay in registers.
INLINE void pool_columns(const int N, const int dtype, const trivium_matrix *m, int64_t row, int64_t last, int j, float *mean) {
    vf sum[POOL_STEP], count = vf_set1((float)(last - row));
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) sum[i] = vf_set1(0);
    for (int64_t r = row; r < last; r++)
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) sum[i] = vf_add(sum[i], load_source(dtype, m->data, r * m->stride + j + i * LANES));
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) vf_store(mean + j + i * LANES, vf_div(sum[i], count));
}

INLINE void pool_rows(const int dtype, const trivium_matrix *m, int64_t row, int64_t last, float *mean) {
    int j = 0;
    for (; j + POOL_STEP * LANES <= m->cols; j += POOL_STEP * LANES) pool_columns(POOL_STEP, dtype, m, row, last, j, mean);
    for (; j + LANES <= m->cols; j += LANES) pool_columns(1, dtype, m, row, last, j, mean);
    for (; j < m->cols; j++) {
        float sum = 0;
        for (int64_t r = row; r < last; r++) sum += (float)load_number(m->data, dtype, r * m->stride + j);
        mean[j] = sum / (float)(last - row);
    }
}

static void NAME(pool)(const trivium_pool *p) {
    float *mean = p->mean;
    for (int64_t row = 0; row < p->rows.rows; mean += p->rows.cols) {
        int64_t next = (floor_div(p->offset + row, p->block_size) + 1) * p->block_size - p->offset;
        int64_t last = min_i64(next, p->rows.rows);
        switch (p->rows.dtype) {
        case TRIVIUM_BFLOAT16: pool_rows(TRIVIUM_BFLOAT16, &p->rows, row, last, mean); break;
        case TRIVIUM_FLOAT16: pool_rows(TRIVIUM_FLOAT16, &p->rows, row, last, mean); break;
        default: pool_rows(TRIVIUM_FLOAT32, &p->rows, row, last, mean);
        }
        row = last;
    }
}

// Asks for the part of a source that is AHEAD bytes on: the streams of eight
// sources are more than the processor foresees by itself. Eight bfloat16 sources
// from memory on two cores of a Xeon with AMX: 20 GB/s without, 23 with it, and 17
// when they are decoded one after the other.
enum { AHEAD = 1024, LINE = 64 };
INLINE void fetch_ahead(const void *data, int bytes) {
    for (int at = 0; at < bytes; at += LINE) __builtin_prefetch((const char *)data + AHEAD + at);
}

// What add_block makes of a few candidates.
typedef struct {
    step_numbers *sum;                  // where sums wait for the next sources
    uint16_t *rounded[BLOCK_ROWS];      // where finished ones go as bfloat16; NULL: to sum
    float weight[BLOCK_ROWS][SOURCES];
} some_candidates;

// Adds sources, from first on, to the sums of K candidates, BLOCK_STEP elements at a
// time: their sums stay in registers over all sources, and finished ones leave them as
// they are written. Eight bfloat16 sources of 32 Mi elements, processor time on Zen 5
// with AVX-512 on a busy machine: 65 ms into one result, 143 ms into twelve, which
// writes twelve times as much. With sums that went through the first-level cache for
// each source: 5.4 times one. Says whether the sums of the first candidate are finite;
// it may say no where n is not a multiple of BLOCK_STEP.
INLINE int add_block(int K, int dtype, const some_candidates *to, const void *const *data, int64_t first, int sources, int begun, int n) {
    vf odd = vf_set1(0);
    for (int i = 0; i < n; i += BLOCK_STEP) {
        vf total[BLOCK_ROWS][4];
#pragma GCC unroll 4
        for (int c = 0; c < K; c++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) total[c][v] = begun ? vf_load(to->sum[c].narrow + i + v * LANES) : vf_set1(0);
        for (int source = 0; source < sources; source++) {
            vf x[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) x[v] = load_source(dtype, data[source], first + i + v * LANES);
            if (K == 1) fetch_ahead((const char *)data[source] + (first + i) * dtype_bytes(dtype), BLOCK_STEP * dtype_bytes(dtype));
#pragma GCC unroll 4
            for (int c = 0; c < K; c++) {
                vf w = vf_set1(to->weight[c][source]);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) total[c][v] = vf_fma(w, x[v], total[c][v]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) odd = vf_fma(total[0][v], vf_set1(0), odd);
#pragma GCC unroll 4
        for (int c = 0; c < K; c++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                if (to->rounded[c])
                    vf_store_bf16(to->rounded[c] + i + v * LANES, total[c][v]);
                else
                    vf_store(to->sum[c].narrow + i + v * LANES, total[c][v]);
            }
    }
    return vf_total(odd) == 0; // infinity times 0 is NaN
}

// One candidate reads its sources where they lie, if they are all of one dtype
// that loads as it is; where there are more, a source is decoded once for all.
static int read_in_place(const trivium_sum *w, int n) {
    int dtype = w->in_dtype[0];
    int plain = dtype == TRIVIUM_BFLOAT16 || dtype == TRIVIUM_FLOAT16 || dtype == TRIVIUM_FLOAT32;
    for (int i = 1; i < w->sources; i++) plain &= w->in_dtype[i] == dtype;
    return plain && w->candidates == 1 && n % BLOCK_STEP == 0;
}

// Whether a candidate's sums go to their place as they are finished.
static int leaves(const trivium_sum *w, int candidate, int n) {
    return w->out_dtype[candidate] == TRIVIUM_BFLOAT16 && !w->wide && n % BLOCK_STEP == 0;
}

static void aim(some_candidates *to, const trivium_sum *w, int candidate, int rows, int source, int sources, int64_t first, int n) {
    for (int r = 0; r < rows; r++) {
        int c = candidate + r;
        to->rounded[r] = source + sources == w->sources && leaves(w, c, n) ? (uint16_t *)w->out[c] + first : NULL;
        for (int i = 0; i < sources; i++) to->weight[r][i] = (float)w->weight[c * w->sources + source + i];
    }
}

// Adds some sources to the only candidate, from where they lie; says as add_block.
static int add_in_place(sum_scratch *s, const trivium_sum *w, int source, int sources, int64_t first, int n) {
    some_candidates to = {.sum = s->sum};
    aim(&to, w, 0, 1, source, sources, first, n);
    const void *const *data = w->in + source;
    switch (w->in_dtype[0]) {
    case TRIVIUM_BFLOAT16: return add_block(1, TRIVIUM_BFLOAT16, &to, data, first, sources, source > 0, n);
    case TRIVIUM_FLOAT16: return add_block(1, TRIVIUM_FLOAT16, &to, data, first, sources, source > 0, n);
    default: return add_block(1, TRIVIUM_FLOAT32, &to, data, first, sources, source > 0, n);
    }
}

// Adds some sources, decoded, to the sums of some candidates; says as add_block.
static int add_decoded(sum_scratch *s, const trivium_sum *w, int candidate, int candidates, int source, int sources, int64_t first, int n) {
    some_candidates to;
    const void *data[SOURCES];
    for (int i = 0; i < sources; i++) data[i] = s->x[i];
    int finite = 1;
    for (int c = 0; c < candidates; c += BLOCK_ROWS) {
        int rows = candidates - c < BLOCK_ROWS ? candidates - c : BLOCK_ROWS, found;
        to.sum = s->sum + c;
        aim(&to, w, candidate + c, rows, source, sources, first, n);
        switch (rows) {
        case 1: found = add_block(1, TRIVIUM_FLOAT32, &to, data, 0, sources, source > 0, n); break;
        case 2: found = add_block(2, TRIVIUM_FLOAT32, &to, data, 0, sources, source > 0, n); break;
        case 3: found = add_block(3, TRIVIUM_FLOAT32, &to, data, 0, sources, source > 0, n); break;
        default: found = add_block(4, TRIVIUM_FLOAT32, &to, data, 0, sources, source > 0, n);
        }
        finite = c ? finite : found;
    }
    return finite;
}

static void add_wide(sum_scratch *s, const trivium_sum *w, int candidate, int candidates, int source, int64_t first, int n) {
    if (w->in_dtype[source] == TRIVIUM_FLOAT64) {
        memcpy(s->wide, (const double *)w->in[source] + first, sizeof(double) * n);
    } else {
        decode(s->floats, w->in[source], w->in_dtype[source], first, n, s->halves);
        for (int i = 0; i < n; i++) s->wide[i] = s->floats[i];
    }
    for (int c = 0; c < candidates; c++) {
        double weight = w->weight[(candidate + c) * w->sources + source], *sum = s->sum[c].wide;
        if (!source) memset(sum, 0, sizeof(double) * n);
        for (int i = 0; i < n; i++) sum[i] = __builtin_fma(weight, s->wide[i], sum[i]);
    }
}

static int all_finite(const double *x, int n) {
    int count = 0;
    for (int i = 0; i < n; i++) count += !isfinite(x[i]);
    return !count;
}

static void NAME(weighted_sum)(const trivium_sum *w, void *scratch) {
    sum_scratch *s = scratch;
    for (int64_t first = w->first; first < w->first + w->count; first += STEP) {
        int n = (int)min_i64(STEP, w->first + w->count - first), in_place = !w->wide && read_in_place(w, n);
        for (int from = 0; from < w->candidates; from += CANDIDATES) {
            int candidates = w->candidates - from < CANDIDATES ? w->candidates - from : CANDIDATES;
            int finite = 1;
            for (int source = 0; source < w->sources; source += w->wide ? 1 : SOURCES) {
                int sources = w->sources - source < SOURCES ? w->sources - source : SOURCES;
                if (w->wide) {
                    add_wide(s, w, from, candidates, source, first, n);
                    continue;
                }
                if (in_place) {
                    finite = add_in_place(s, w, source, sources, first, n);
                    continue;
                }
                for (int i = 0; i < sources && (!from || w->sources > SOURCES); i++)
                    decode(s->x[i], w->in[source + i], w->in_dtype[source + i], first, n, s->halves);
                finite = add_decoded(s, w, from, candidates, source, sources, first, n);
            }
            if (w->wide) finite = all_finite(s->sum[0].wide, n);
            // A source that is not finite makes every sum so, whatever its weight: as long
            // as the first one is finite there is nothing to count.
            if (!from && !finite)
                for (int i = 0; i < w->sources; i++) w->nonfinite[i] += not_finite(s->floats, w->in[i], w->in_dtype[i], first, n, s->halves);
            for (int c = 0; c < candidates; c++)
                if (!leaves(w, from + c, n)) encode(w->out[from + c], w->out_dtype[from + c], first, n, &s->sum[c], w->wide, s->floats);
        }
    }
}

#include "differences.h"
#include "ranked.h"
#include "variances.h"

#define TABLE(isa, order)                          \
    const trivium_kernels trivium_kernels_##isa = { \
        .name = #isa,                              \
        .rank = order,                             \
        .supported = supported_##isa,              \
        .pack_bytes = pack_bytes_##isa,            \
        .pack = pack_##isa,                        \
        .scratch_bytes = scratch_bytes_##isa,      \
        .attend = attend_##isa,                    \
        .representative = representative_##isa,    \
        .row_mass = row_mass_##isa,                \
        .pool = pool_##isa,                        \
        .weighted_sum = weighted_sum_##isa,        \
        .sum_bytes = sizeof(sum_scratch),          \
        .products = products_##isa,                \
        .magnitudes = magnitudes_##isa,            \
        .sparse = sparse_##isa,                    \
        .difference_bytes = sizeof(difference_scratch), \
        .square_mass = square_mass_##isa,          \
        .column_score = column_score_##isa,        \
        .rest = rest_##isa,                        \
        .ranked = ranked_##isa,                    \
        .variances = variances_##isa,              \
        .squares = squares_##isa,                  \
        .majority = majority_##isa,                \
        .dots = dots_##isa,                        \
        .tile_levels = tile_levels_##isa,          \
    };                                             \
    TRIVIUM_REGISTER(trivium_kernels_##isa)
