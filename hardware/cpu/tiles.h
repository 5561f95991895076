// Attention in tiles, for every instruction set: a file of kernels defines the
// vectors below and includes this one.
//
// A tile is up to 128 query rows by up to 128 keys. Keys and values are packed
// once, as panels of 16 columns: keys [variant, keys/16, key_dim, 16], values
// [keys/128, value_dim/16, 128, 16]. Scores are kept in
// log2, so that exp2 alone is needed; a row whose maximum does not move is not
// rescaled; sums are kept as vectors until a row is finished; the keys that no
// row of a strip of ROW_STEP sees are left out.
//
// To be defined before: LANES, ROW_STEP, PANEL_STEP (rows and panels of one
// block of registers), vf and its operations, and NAME(x).
//
// Error: exp2 below 2e-7 relative (polynomial 7.5e-8, the rest rounding), tanh
// below 3e-7; sums of head_dim and of keys in float32, fused.
#include <math.h>
#include "numbers.h"
#include "visible.h"

enum {
    TILE = 128, PANEL = 16, PER_PANEL = PANEL / LANES, STRIPS = (TILE + ROW_STEP - 1) / ROW_STEP,
    MARGIN = TRIVIUM_REPRESENTATIVE_ROWS, // rows of one representative call, and zeros around their exponentials
};

#define INLINE static inline __attribute__((always_inline))

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// exp2 of x <= 0; 0 below 2^-126, NaN for NaN.
INLINE vf exp2_below_one(vf x) {
    vf r = vf_fraction(x); // in [0, 1)
    vf y = vf_set1(0x1.ec320ap-10f);
    y = vf_fma(y, r, vf_set1(0x1.26900ep-7f));
    y = vf_fma(y, r, vf_set1(0x1.c95446p-5f));
    y = vf_fma(y, r, vf_set1(0x1.ebd5a8p-3f));
    y = vf_fma(y, r, vf_set1(0x1.62e4f6p-1f));
    y = vf_fma(y, r, vf_set1(0x1.fffffep-1f));
    return vf_scale(y, x);
}

INLINE vf tanh_of(vf x) {
    vf size = vf_abs(x), square = vf_mul(x, x);
    vf near = vf_set1(-0.005852180765534772f);
    near = vf_fma(near, square, vf_set1(0.020753641317178398f));
    near = vf_fma(near, square, vf_set1(-0.053768709339743745f));
    near = vf_fma(near, square, vf_set1(0.1333168903576175f));
    near = vf_fma(near, square, vf_set1(-0.3333328326240598f));
    near = vf_fma(vf_mul(near, square), x, x);
    // 1 - 2/(e^2x + 1) with e^-2x, which cannot overflow.
    vf e = exp2_below_one(vf_mul(size, vf_set1(-2.885390081777927f)));
    vf far = vf_div(vf_sub(vf_set1(1), e), vf_add(vf_set1(1), e));
    return vf_select_below(size, vf_set1(0.6f), near, vf_copysign(far, x));
}

// --- elements to float32 and back ---

static void load_floats(float *to, const trivium_matrix *m, int64_t row) {
    int n = m->cols, i = 0;
    if (m->dtype == TRIVIUM_FLOAT32) {
        memcpy(to, (const float *)m->data + row * m->stride, sizeof(float) * n);
        return;
    }
    const uint16_t *from = (const uint16_t *)m->data + row * m->stride;
    if (m->dtype == TRIVIUM_BFLOAT16)
        for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_bf16(from + i));
    else
        for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_f16(from + i));
    for (; i < n; i++) to[i] = (float)load_number(from, m->dtype, i);
}

static void store_floats(const trivium_matrix *m, int64_t row, const float *from) {
    int n = m->cols, i = 0;
    if (m->dtype == TRIVIUM_FLOAT32) {
        memcpy((float *)m->data + row * m->stride, from, sizeof(float) * n);
        return;
    }
    uint16_t *to = (uint16_t *)m->data + row * m->stride;
    if (m->dtype == TRIVIUM_BFLOAT16)
        for (; i + LANES <= n; i += LANES) vf_store_bf16(to + i, vf_load(from + i));
    else
        for (; i + LANES <= n; i += LANES) vf_store_f16(to + i, vf_load(from + i));
    for (; i < n; i++) store_number(to, m->dtype, i, from[i]);
}

static void rotate_floats(float *x, const trivium_problem *p, const trivium_rotation *r, int64_t row) {
    if (!r->table) return;
    const float *t = r->table + row * r->step;
    int next = p->interleaved ? 2 : 1, far = p->interleaved ? 1 : p->half;
    for (int i = 0; i < p->half; i++) {
        float c = t[2 * i], s = t[2 * i + 1], u = x[next * i], v = x[next * i + far];
        x[next * i] = u * c - v * s;
        x[next * i + far] = u * s + v * c;
    }
}

// --- packing ---

static inline int value_panels(const trivium_problem *p) { return (p->value_dim + PANEL - 1) / PANEL; }
// The panel of key n, a multiple of 16.
static inline float *key_panel(const trivium_problem *p, const trivium_keys *k, int variant, int64_t n) {
    return (float *)k->packed + (variant * round_up(k->key.rows, TILE) + n) * p->key_dim;
}
// Key n in the first panel of values of its chunk.
static inline float *value_row(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    return key_panel(p, k, p->key_variants, 0) + n / TILE * TILE * PANEL * value_panels(p) + n % TILE * PANEL;
}

static size_t NAME(pack_bytes)(const trivium_problem *p, int64_t rows) {
    return sizeof(float) * (size_t)round_up(rows, TILE) * ((size_t)p->key_variants * p->key_dim + (size_t)PANEL * value_panels(p));
}

// rows: [16, stride], of which dim columns are turned into to: [dim, 16].
static void pack_panel(float *to, const float *rows, int64_t stride, int dim) {
    int i = 0;
    for (; i + LANES <= dim; i += LANES) {
        for (int part = 0; part < PER_PANEL; part++) {
            vf block[LANES];
            for (int r = 0; r < LANES; r++) block[r] = vf_load(rows + (part * LANES + r) * stride + i);
            vf_transpose(block);
            for (int r = 0; r < LANES; r++) vf_store(to + (i + r) * PANEL + part * LANES, block[r]);
        }
    }
    for (; i < dim; i++)
        for (int r = 0; r < PANEL; r++) to[i * PANEL + r] = rows[r * stride + i];
}

static int key_plain(const trivium_problem *p, const trivium_keys *k, int variant) {
    return k->key.dtype == TRIVIUM_FLOAT32 && !k->rotation[variant].table && p->key_dim % LANES == 0;
}

static void pack_chunk(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    _Alignas(64) float panel[PANEL * 256];
    for (int64_t at = 0; at < TILE; at += PANEL) {
        int64_t have = max_i64(0, min_i64(PANEL, rows - at));
        for (int v = 0; v < p->key_variants; v++) {
            if (have == PANEL && key_plain(p, k, v)) {
                pack_panel(key_panel(p, k, v, first + at), (const float *)k->key.data + (first + at) * k->key.stride, k->key.stride, p->key_dim);
                continue;
            }
            memset(panel, 0, sizeof panel);
            for (int64_t r = 0; r < have; r++) {
                load_floats(panel + r * 256, &k->key, first + at + r);
                rotate_floats(panel + r * 256, p, &k->rotation[v], first + at + r);
            }
            pack_panel(key_panel(p, k, v, first + at), panel, 256, p->key_dim);
        }
    }
    float *values = value_row(p, k, first);
    for (int64_t r = 0; r < TILE; r++) {
        if (r >= rows || p->value_dim % PANEL) memset(panel, 0, sizeof(float) * 256);
        const float *from = panel;
        if (r < rows && k->value.dtype == TRIVIUM_FLOAT32 && p->value_dim % PANEL == 0)
            from = (const float *)k->value.data + (first + r) * k->value.stride;
        else if (r < rows) load_floats(panel, &k->value, first + r);
        for (int j = 0; j < value_panels(p); j++)
            for (int i = 0; i < PANEL; i += LANES) vf_store(values + (j * TILE + r) * PANEL + i, vf_load(from + j * PANEL + i));
    }
}

static void NAME(pack)(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    for (int64_t at = 0; at < rows && !cancelled(p); at += TILE) pack_chunk(p, k, first + at, min_i64(TILE, rows - at));
}

// --- matrix products ---

// c[R, 16N] = (add ? c : 0) + a[R, depth] . b[N panels][depth, 16].
INLINE void product(const int R, const int N, const float *a, long lda, const float *b, long panel, long depth, float *c, long ldc, int add) {
    vf sum[ROW_STEP][PANEL_STEP * PER_PANEL]; // of fixed size, so that it becomes registers
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int j = 0; j < N * PER_PANEL; j++) sum[r][j] = add ? vf_load(c + r * ldc + j * LANES) : vf_set1(0);
    for (long k = 0; k < depth; k++) {
        vf row[PANEL_STEP * PER_PANEL];
#pragma GCC unroll 16
        for (int j = 0; j < N * PER_PANEL; j++) row[j] = vf_load(b + j / PER_PANEL * panel + k * PANEL + j % PER_PANEL * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vf x = vf_set1(a[r * lda + k]);
#pragma GCC unroll 16
            for (int j = 0; j < N * PER_PANEL; j++) sum[r][j] = vf_fma(x, row[j], sum[r][j]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int j = 0; j < N * PER_PANEL; j++) vf_store(c + r * ldc + j * LANES, sum[r][j]);
}

typedef void product_fn(const float *a, long lda, const float *b, long panel, long depth, float *c, long ldc, int add);
#define PRODUCT(R, N)                                                                                                   \
    static void product_##R##_##N(const float *a, long lda, const float *b, long panel, long depth, float *c, long ldc, int add) { \
        product(R, N, a, lda, b, panel, depth, c, ldc, add);                                                            \
    }
#define PRODUCT_ROWS(N) PRODUCT(1, N) PRODUCT(2, N) PRODUCT(3, N) PRODUCT(4, N) PRODUCT(5, N) PRODUCT(6, N)
#define PRODUCT_LIST(N) {product_1_##N, product_2_##N, product_3_##N, product_4_##N, product_5_##N, product_6_##N}
_Static_assert(ROW_STEP == 6, "the list of products is for six rows");
PRODUCT_ROWS(1)
#if PANEL_STEP == 4
PRODUCT_ROWS(2) PRODUCT_ROWS(3) PRODUCT_ROWS(4)
static product_fn *const products[PANEL_STEP][ROW_STEP] = {PRODUCT_LIST(1), PRODUCT_LIST(2), PRODUCT_LIST(3), PRODUCT_LIST(4)};
#else
static product_fn *const products[PANEL_STEP][ROW_STEP] = {PRODUCT_LIST(1)};
#endif

// --- scores ---

// The query rows that are being worked on, and one tile of their scores.
typedef struct {
    const trivium_head *head;
    const trivium_problem *problem;
    int rows, query_stride;
    float *query;             // [query_variants, TILE, query_stride], scaled so that scores are in log2
    float *score, *other;     // [TILE, TILE]
    int64_t row[TILE], position[TILE]; // rising
    int limit[STRIPS];        // keys of the tile that some row of the strip sees, a multiple of 16
    uint8_t ready[256];       // query variants
} tile_rows;

static inline int query_stride(const trivium_problem *p) { return (int)round_up(p->key_dim, 16); }
static inline int64_t tile_floats(const trivium_problem *p) {
    return (int64_t)TILE * query_stride(p) * p->query_variants + 2 * TILE * TILE;
}

static float *start_tile(tile_rows *t, const trivium_head *h, float *scratch) {
    const trivium_problem *p = h->problem;
    t->head = h;
    t->problem = p;
    t->rows = 0;
    t->query_stride = query_stride(p);
    t->score = scratch;
    t->other = scratch + TILE * TILE;
    t->query = scratch + 2 * TILE * TILE;
    memset(t->ready, 0, p->query_variants);
    return scratch + tile_floats(p);
}

static void add_row(tile_rows *t, int64_t row) {
    t->row[t->rows] = row;
    t->position[t->rows++] = t->head->offset + row;
}

static const float *query_variant(tile_rows *t, int variant) {
    const trivium_problem *p = t->problem;
    float *query = t->query + (int64_t)variant * TILE * t->query_stride;
    if (t->ready[variant]) return query;
    t->ready[variant] = 1;
    // With a softcap, tanh wants the score over the cap.
    float scale = p->softcap ? p->scale / p->softcap : p->scale * 1.4426950408889634f;
    _Alignas(64) float x[256];
    for (int r = 0; r < t->rows; r++) {
        load_floats(x, &t->head->query, t->row[r]);
        rotate_floats(x, p, &t->head->rotation[variant], t->row[r]);
        for (int i = 0; i < p->key_dim; i++) query[r * t->query_stride + i] = x[i] * scale;
    }
    return query;
}

static void set_limits(tile_rows *t, int64_t k0, int keys) {
    for (int s = 0; s * ROW_STEP < t->rows; s++) {
        int last = s * ROW_STEP + ROW_STEP - 1 < t->rows ? s * ROW_STEP + ROW_STEP - 1 : t->rows - 1;
        int64_t seen = last_visible(t->problem, t->position[last], t->head->keys->key.rows) - k0;
        t->limit[s] = (int)round_up(max_i64(0, min_i64(seen, keys)), PANEL);
    }
}

static void multiply_keys(tile_rows *t, const trivium_band *band, int64_t k0, int keys, float *score) {
    const trivium_problem *p = t->problem;
    const float *query = query_variant(t, band->query);
    const float *packed = key_panel(p, t->head->keys, band->key, k0);
    for (int j = 0; j < keys; j += PANEL_STEP * PANEL) {
        for (int s = 0, r = 0; r < t->rows; s++, r += ROW_STEP) {
            int panels = (t->limit[s] - j) / PANEL;
            if (t->limit[s] <= j) continue;
            if (panels > PANEL_STEP) panels = PANEL_STEP;
            int rows = t->rows - r < ROW_STEP ? t->rows - r : ROW_STEP;
            products[panels - 1][rows - 1](query + (long)r * t->query_stride, t->query_stride, packed + (long)j * p->key_dim,
                                           (long)p->key_dim * PANEL, p->key_dim, score + r * TILE + j, TILE, 0);
        }
    }
}

// The keys at which a row at position m is in the band: [*first, *last).
static void band_keys(const trivium_band *b, int64_t m, int64_t *first, int64_t *last) {
    int64_t chunk = floor_div(m, b->chunk);
    const int64_t far = INT64_MAX / 4;
    if (b->high > far || __builtin_mul_overflow(chunk - b->high + 1, b->chunk, first)) *first = -far;
    if (b->low < -far || __builtin_mul_overflow(chunk - b->low + 1, b->chunk, last)) *last = far;
}

static void multiply_bands(tile_rows *t, int64_t k0, int keys) {
    const trivium_problem *p = t->problem;
    int64_t low = t->position[0], high = t->position[t->rows - 1];
    int first = 1;
    for (const trivium_band *b = p->band; b < p->band + p->bands; b++) {
        int64_t nearest = floor_div(low, b->chunk) - floor_div(k0 + keys - 1, b->chunk);
        int64_t farthest = floor_div(high, b->chunk) - floor_div(k0, b->chunk);
        if (p->causal) nearest = max_i64(nearest, 0);
        if (b->low > farthest || (b->high <= nearest && b->high != INT64_MAX)) continue;
        multiply_keys(t, b, k0, keys, first ? t->score : t->other);
        for (int r = 0; r < t->rows && !first; r++) {
            int64_t from, to;
            band_keys(b, t->position[r], &from, &to);
            from = max_i64(from - k0, 0);
            to = min_i64(to - k0, t->limit[r / ROW_STEP]);
            if (from < to) memcpy(t->score + r * TILE + from, t->other + r * TILE + from, sizeof(float) * (to - from));
        }
        first = 0;
    }
}

static void cap_scores(tile_rows *t) {
    vf scale = vf_set1(t->problem->softcap * 1.4426950408889634f);
    for (int r = 0; r < t->rows; r++)
        for (int j = 0; j < t->limit[r / ROW_STEP]; j += LANES)
            vf_store(t->score + r * TILE + j, vf_mul(tanh_of(vf_load(t->score + r * TILE + j)), scale));
}

static void hide_keys(tile_rows *t, int64_t k0) {
    const trivium_problem *p = t->problem;
    for (int r = 0; r < t->rows; r++) {
        int limit = t->limit[r / ROW_STEP];
        int64_t from = first_visible(p, t->position[r]) - k0, to = last_visible(p, t->position[r], t->head->keys->key.rows) - k0;
        float *score = t->score + r * TILE;
        for (int64_t j = 0; j < min_i64(from, limit); j++) score[j] = -INFINITY;
        for (int64_t j = max_i64(to, 0); j < limit; j++) score[j] = -INFINITY;
    }
}

// The scores of keys [k0, k0+keys), k0 a multiple of 16, within one chunk.
static void score_tile(tile_rows *t, int64_t k0, int keys) {
    const trivium_problem *p = t->problem;
    set_limits(t, k0, keys);
    if (p->bands == 1) multiply_keys(t, p->band, k0, keys, t->score);
    else multiply_bands(t, k0, keys);
    if (p->softcap) cap_scores(t);
    if (keys % PANEL || k0 + keys > last_visible(p, t->position[0], t->head->keys->key.rows) ||
        k0 < first_visible(p, t->position[t->rows - 1])) hide_keys(t, k0);
}

// The first key of the next tile after k0, at most `end`.
static inline int64_t tile_end(int64_t k0, int64_t end) { return min_i64(end, (k0 / TILE + 1) * TILE); }

INLINE vf row_maximum(const float *score, int keys) {
    vf top = vf_load(score);
    for (int j = LANES; j < keys; j += LANES) top = vf_max(top, vf_load(score + j));
    return top;
}

// Turns scores into exp2(score - top) and gives their sum.
INLINE vf exponentials(float *score, int keys, float top) {
    vf reference = vf_set1(top == -INFINITY ? 0 : top), sum = vf_set1(0);
    for (int j = 0; j < keys; j += LANES) {
        vf e = exp2_below_one(vf_sub(vf_load(score + j), reference));
        sum = vf_add(sum, e);
        vf_store(score + j, e);
    }
    return sum;
}

static inline float exp2_scalar(float x) { return x < -126 ? 0 : exp2f(x); }

// --- attention ---

typedef struct {
    tile_rows tile;
    float *out;               // [TILE, 16 value panels] not yet divided
    float *sum;               // [TILE, LANES]
    float top[TILE];          // maximum so far, log2
    int out_stride;
} attention;

static void attend_tile(attention *a, int64_t k0, int keys) {
    tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    score_tile(t, k0, keys);
    for (int r = 0; r < t->rows; r++) {
        int limit = t->limit[r / ROW_STEP];
        if (!limit) continue;
        float *score = t->score + r * TILE;
        vf top = row_maximum(score, limit);
        if (vf_any_above(top, vf_set1(a->top[r]))) {
            float next = vf_highest(top);
            vf shrink = vf_set1(exp2_scalar(a->top[r] - next));
            a->top[r] = next;
            vf_store(a->sum + r * LANES, vf_mul(vf_load(a->sum + r * LANES), shrink));
            for (int j = 0; j < a->out_stride; j += LANES)
                vf_store(a->out + r * a->out_stride + j, vf_mul(vf_load(a->out + r * a->out_stride + j), shrink));
        }
        vf_store(a->sum + r * LANES, vf_add(vf_load(a->sum + r * LANES), exponentials(score, limit, a->top[r])));
    }
    const float *values = value_row(p, t->head->keys, k0);
    for (int j = 0; j < value_panels(p); j += PANEL_STEP) {
        int panels = value_panels(p) - j < PANEL_STEP ? value_panels(p) - j : PANEL_STEP;
        for (int s = 0, r = 0; r < t->rows; s++, r += ROW_STEP) {
            int rows = t->rows - r < ROW_STEP ? t->rows - r : ROW_STEP;
            if (t->limit[s])
                products[panels - 1][rows - 1](t->score + r * TILE, TILE, values + (long)j * TILE * PANEL, TILE * PANEL, t->limit[s],
                                               a->out + (long)r * a->out_stride + j * PANEL, a->out_stride, 1);
        }
    }
}

static void attend_keys(attention *a, int64_t first, int64_t last) {
    const tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    first = max_i64(first, first_visible(p, t->position[0]) / PANEL * PANEL);
    last = min_i64(last, last_visible(p, t->position[t->rows - 1], t->head->keys->key.rows));
    for (int64_t k0 = first; k0 < last && !cancelled(p);) {
        int64_t end = tile_end(k0, last);
        attend_tile(a, k0, (int)(end - k0));
        k0 = end;
    }
}

static void finish_row(const trivium_attend *c, attention *a, int r) {
    int64_t row = a->tile.row[r];
    float *out = a->out + (long)r * a->out_stride;
    float top = a->top[r], sink = c->partial ? -INFINITY : c->sink * 1.4426950408889634f;
    float sum = vf_total(vf_load(a->sum + r * LANES)), scale = 0, lse = -INFINITY;
    if (top > -INFINITY || top != top) {
        float highest = fmaxf(top, sink);
        float shrink = exp2_scalar(top - highest);
        float total = sum * shrink + exp2_scalar(sink - highest);
        scale = shrink / total;
        lse = (float)((highest + log2((double)total)) * 0.6931471805599453);
        if (top != top) scale = lse = top;
    }
    for (int j = 0; j < a->out_stride; j += LANES) vf_store(out + j, vf_mul(vf_load(out + j), vf_set1(scale)));
    if (c->partial) {
        int dim = a->tile.problem->value_dim;
        float *to = c->partial + (row - c->row) * (dim + 1);
        memcpy(to, out, sizeof(float) * dim);
        to[dim] = lse;
        return;
    }
    store_floats(&c->output, row, out);
    if (c->lse) c->lse[row] = lse;
}

static void NAME(attend)(const trivium_attend *c, void *scratch) {
    attention a;
    const trivium_problem *p = c->head->problem;
    a.out = start_tile(&a.tile, c->head, scratch);
    a.out_stride = value_panels(p) * PANEL;
    a.sum = a.out + TILE * a.out_stride;
    for (int64_t r = 0; r < c->rows; r++) {
        add_row(&a.tile, c->row + r);
        a.top[r] = -INFINITY;
    }
    memset(a.out, 0, sizeof(float) * c->rows * a.out_stride);
    memset(a.sum, 0, sizeof(float) * c->rows * LANES);
    if (!c->block) attend_keys(&a, c->first, c->last);
    for (int64_t i = 0; c->block && i < c->blocks;) {
        int64_t first = i++; // neighbours are one run
        while (i < c->blocks && c->block[i] == c->block[i - 1] + 1) i++;
        attend_keys(&a, c->block[first] * c->block_size, (c->block[i - 1] + 1) * c->block_size);
    }
    for (int r = 0; r < a.tile.rows; r++) finish_row(c, &a, r);
}

// --- representative rows ---

// One pass over the keys keeps exp2(score - maximum so far) of every row; a
// second, over those numbers, scales them and adds up columns and diagonals.
// exponential: [rows, stride] with MARGIN zeros on either side of the keys.
static void sum_columns(float *columns, float *exponential, int64_t stride, int64_t keys, int rows, const float *weight) {
    for (int64_t j = 0; j < keys; j += LANES) {
        const float *w = weight + j / TILE * TRIVIUM_REPRESENTATIVE_ROWS;
        vf sum = vf_set1(0);
        for (int r = 0; r < rows; r++) {
            float *e = exponential + r * stride + MARGIN + j;
            vf a = vf_mul(vf_load(e), vf_set1(w[r]));
            vf_store(e, a);
            sum = vf_add(sum, a);
        }
        vf_store(columns + j, sum);
    }
}

// Row r at key j is at distance origin + r - j.
static void sum_slashes(float *slashes, const float *exponential, int64_t stride, int64_t keys, int64_t all, int rows, int64_t origin) {
    for (int64_t u = -rows + 1; u < keys; u += LANES) { // the key that row 0 would have
        vf sum = vf_set1(0);
        for (int r = 0; r < rows; r++) sum = vf_add(sum, vf_load(exponential + r * stride + MARGIN + u + r));
        float lanes[LANES];
        vf_store(lanes, sum);
        for (int i = 0; i < LANES; i++) {
            int64_t distance = origin - u - i;
            if (distance >= 0 && distance < all) slashes[distance] += lanes[i];
        }
    }
}

static inline int64_t representative_stride(int64_t keys) { return round_up(keys, TILE) + 2 * MARGIN + 16; }
static inline int64_t representative_floats(int64_t keys) {
    return TRIVIUM_REPRESENTATIVE_ROWS * (representative_stride(keys) + round_up(keys, TILE) / TILE) + round_up(keys, TILE);
}

static void NAME(representative)(const trivium_representative *c, void *scratch) {
    tile_rows t;
    const trivium_problem *p = c->head->problem;
    int64_t all = c->head->keys->key.rows, stride = representative_stride(all);
    float *exponential = start_tile(&t, c->head, scratch);
    float *weight = exponential + TRIVIUM_REPRESENTATIVE_ROWS * stride; // first the maximum of each tile and row
    float *columns = weight + TRIVIUM_REPRESENTATIVE_ROWS * (round_up(all, TILE) / TILE);
    float top[TRIVIUM_REPRESENTATIVE_ROWS];
    _Alignas(64) float sum[TRIVIUM_REPRESENTATIVE_ROWS * LANES] = {0};
    for (int r = 0; r < c->rows; r++) {
        add_row(&t, c->row + r);
        top[r] = -INFINITY;
        memset(exponential + r * stride, 0, sizeof(float) * MARGIN);
    }
    int64_t origin = c->head->offset + c->row; // position of the first row
    int64_t keys = round_up(last_visible(p, origin + c->rows - 1, all), PANEL);
    int64_t first = first_visible(p, origin) / TILE * TILE;
    for (int r = 0; r < c->rows; r++) {
        memset(exponential + r * stride + MARGIN, 0, sizeof(float) * min_i64(first, keys));
        memset(exponential + r * stride + MARGIN + keys, 0, sizeof(float) * (MARGIN + 16));
    }
    memset(weight, 0, sizeof(float) * TRIVIUM_REPRESENTATIVE_ROWS * (first / TILE));
    for (int64_t k0 = first; k0 < keys && !cancelled(p); k0 += TILE) {
        int n = (int)(min_i64(keys, k0 + TILE) - k0);
        score_tile(&t, k0, (int)min_i64(n, all - k0));
        for (int r = 0; r < t.rows; r++) {
            int limit = t.limit[r / ROW_STEP];
            float *score = t.score + r * TILE, *to = exponential + r * stride + MARGIN + k0;
            vf high = limit ? row_maximum(score, limit) : vf_set1(-INFINITY);
            if (vf_any_above(high, vf_set1(top[r]))) {
                float next = vf_highest(high);
                vf_store(sum + r * LANES, vf_mul(vf_load(sum + r * LANES), vf_set1(exp2_scalar(top[r] - next))));
                top[r] = next;
            }
            vf_store(sum + r * LANES, vf_add(vf_load(sum + r * LANES), exponentials(score, limit, top[r])));
            memcpy(to, score, sizeof(float) * limit);
            memset(to + limit, 0, sizeof(float) * (n - limit));
            weight[k0 / TILE * TRIVIUM_REPRESENTATIVE_ROWS + r] = top[r];
        }
    }
    for (int r = 0; r < t.rows; r++) {
        float total = vf_total(vf_load(sum + r * LANES));
        c->lse[r] = top[r] == -INFINITY ? -INFINITY : (float)((top[r] + log2((double)total)) * 0.6931471805599453);
        for (int64_t tile = first / TILE; tile * TILE < keys; tile++) {
            float *w = &weight[tile * TRIVIUM_REPRESENTATIVE_ROWS + r];
            *w = *w == -INFINITY ? 0 : exp2_scalar(*w - top[r]) / total;
        }
    }
    memset(c->slashes, 0, sizeof(float) * all);
    if (cancelled(p)) return;
    sum_columns(columns, exponential, stride, keys, t.rows, weight);
    memcpy(c->columns, columns, sizeof(float) * min_i64(keys, all));
    if (keys < all) memset(c->columns + keys, 0, sizeof(float) * (all - keys));
    sum_slashes(c->slashes, exponential, stride, keys, all, t.rows, origin);
}

// --- mass of rows ---

// For each row and key block the maximum and the sum of exponentials relative
// to it are kept; in the end they are scaled by the row's own lse.
static void NAME(row_mass)(const trivium_row_mass *c, void *scratch) {
    tile_rows t;
    const trivium_problem *p = c->head->problem;
    int64_t all = c->head->keys->key.rows, blocks = (all + c->block_size - 1) / c->block_size;
    float *tops = start_tile(&t, c->head, scratch); // [blocks, TILE]
    for (int64_t i = 0; i < c->rows; i++) {
        add_row(&t, c->row[i]);
        memset(c->mass + c->place[i] * blocks, 0, sizeof(float) * blocks);
    }
    for (int64_t i = 0; i < blocks * TILE; i++) tops[i] = -INFINITY;
    int64_t last = last_visible(p, c->head->offset + c->row[c->rows - 1], all);
    for (int64_t k0 = first_visible(p, c->head->offset + c->row[0]) / PANEL * PANEL; k0 < last && !cancelled(p);) {
        int64_t block = k0 / c->block_size, end = tile_end(k0, min_i64(last, (block + 1) * c->block_size));
        score_tile(&t, k0, (int)(end - k0));
        for (int r = 0; r < t.rows; r++) {
            int limit = t.limit[r / ROW_STEP];
            if (!limit) continue;
            float *top = &tops[block * TILE + r], *mass = &c->mass[c->place[r] * blocks + block];
            float next = fmaxf(*top, vf_highest(row_maximum(t.score + r * TILE, limit)));
            float before = *top == -INFINITY ? 0 : *mass * exp2_scalar(*top - next);
            *mass = before + vf_total(exponentials(t.score + r * TILE, limit, next));
            *top = next;
        }
        k0 = end;
    }
    for (int r = 0; r < t.rows; r++) {
        float *mass = c->mass + c->place[r] * blocks, top = -INFINITY;
        double sum = 0;
        for (int64_t b = 0; b < blocks; b++) top = fmaxf(top, tops[b * TILE + r]);
        for (int64_t b = 0; b < blocks; b++) {
            mass[b] = tops[b * TILE + r] == -INFINITY ? 0 : mass[b] * exp2_scalar(tops[b * TILE + r] - top);
            sum += mass[b];
        }
        for (int64_t b = 0; b < blocks && sum > 0; b++) mass[b] = (float)(mass[b] / sum);
        c->lse[c->place[r]] = top == -INFINITY ? -INFINITY : (float)((top + log2(sum)) * 0.6931471805599453);
    }
}

static size_t NAME(scratch_bytes)(const trivium_problem *p, int64_t keys) {
    int64_t attend = (int64_t)TILE * (value_panels(p) * PANEL + LANES);
    int64_t mass = (keys + 15) / 16 * TILE;
    return sizeof(float) * (size_t)(tile_floats(p) + max_i64(attend, max_i64(mass, representative_floats(keys))));
}

// --- means ---

static void NAME(pool)(const trivium_pool *p) {
    _Alignas(64) float x[256], sum[256];
    float *mean = p->mean;
    int cols = p->rows.cols;
    for (int64_t row = 0; row < p->rows.rows; mean += cols) {
        int64_t next = (floor_div(p->offset + row, p->block_size) + 1) * p->block_size - p->offset;
        int64_t last = min_i64(next, p->rows.rows);
        memset(sum, 0, sizeof sum);
        for (int64_t r = row; r < last; r++) {
            load_floats(x, &p->rows, r);
            for (int j = 0; j < cols; j++) sum[j] += x[j];
        }
        for (int j = 0; j < cols; j++) mean[j] = sum[j] / (float)(last - row);
        row = last;
    }
}
