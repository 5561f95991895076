// Packing and products in float32, for every instruction set: included between
// elements.h and tiles.h by files that define ROW_STEP and PANEL_STEP, the rows
// and panels of one block of registers.
typedef float query_t, weight_t;
enum { KEY_STEP = PANEL, PASS_ROWS = TILE, WEIGHTS_IN_PLACE = 1, SCALED_QUERY = 1 };
#define BEGIN_PRODUCTS()
#define END_PRODUCTS()

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
static inline float weight_at(const float *row, int j) { return row[j]; }

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

// Packs the keys of a chunk, of which there are `rows`.
static void pack_keys(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
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
}

// Packs the values of a chunk, and says whether one of them is not finite.
static int pack_values(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    _Alignas(64) float row[256];
    float *values = value_row(p, k, first);
    vf not_finite = vf_set1(0), zero = vf_set1(0);
    for (int64_t r = 0; r < TILE; r++) {
        if (r >= rows || p->value_dim % PANEL) memset(row, 0, sizeof row);
        const float *from = row;
        if (r < rows && k->value.dtype == TRIVIUM_FLOAT32 && p->value_dim % PANEL == 0)
            from = (const float *)k->value.data + (first + r) * k->value.stride;
        else if (r < rows) load_floats(row, &k->value, first + r);
        for (int j = 0; j < value_panels(p); j++)
            for (int i = 0; i < PANEL; i += LANES) {
                vf x = vf_load(from + j * PANEL + i);
                not_finite = vf_fma(x, zero, not_finite);
                vf_store(values + (j * TILE + r) * PANEL + i, x);
            }
    }
    return vf_total(not_finite) != 0; // infinity times 0 is NaN
}

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

static void store_query(float *to, const float *x, int n, float scale) {
    for (int i = 0; i < n; i++) to[i] = x[i] * scale;
}

// Copies a query that is stored as kernels want it, and says whether it was.
static inline int copy_query(float *to, const trivium_matrix *m, int64_t row, int n) {
    (void)to, (void)m, (void)row, (void)n;
    return 0; // all are scaled
}

// score[rows, keys], as far as the limits, is or grows by: queries . keys [k0,
// k0+keys), k0 a multiple of 16, of one chunk.
static void multiply_scores(const float *query, int stride, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k,
                            int variant, int64_t k0, int keys, float *score, int add) {
    const float *packed = key_panel(p, k, variant, k0);
    for (int j = 0; j < keys; j += PANEL_STEP * PANEL) {
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP) {
            if (limit[s] <= j) continue;
            int panels = (limit[s] - j) / PANEL < PANEL_STEP ? (limit[s] - j) / PANEL : PANEL_STEP;
            int some = rows - r < ROW_STEP ? rows - r : ROW_STEP;
            products[panels - 1][some - 1](query + (long)r * stride, stride, packed + (long)j * p->key_dim, (long)p->key_dim * PANEL,
                                           p->key_dim, score + r * TILE + j, TILE, add);
        }
    }
}

// out[rows, 16 value panels] += weight[rows, TILE] . values of keys from k0 on.
static void multiply_values(const float *weight, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k, int64_t k0,
                            float *out, int out_stride) {
    const float *values = value_row(p, k, k0);
    for (int j = 0; j < value_panels(p); j += PANEL_STEP) {
        int panels = value_panels(p) - j < PANEL_STEP ? value_panels(p) - j : PANEL_STEP;
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP) {
            int some = rows - r < ROW_STEP ? rows - r : ROW_STEP;
            if (limit[s])
                products[panels - 1][some - 1](weight + r * TILE, TILE, values + (long)j * TILE * PANEL, TILE * PANEL, limit[s],
                                               out + (long)r * out_stride + j * PANEL, out_stride, 1);
        }
    }
}

// The exponentials of a row take the place of its scores.
#define weights(weight, score, keys, top, unit) ((void)(weight), exponentials(score, keys, top, unit))
#define exp2_score exp2_below_one
#define keep_weights(weight, score, keys, top, unit) exponentials_to(weight, score, keys, top, unit)
#define kept_weights(weight) vf_load(weight)
// The machine foresees what float32 products will want soon enough.
#define prefetch_tile(p, k, k0, keys, part, parts) ((void)0)
#define prefetch_keys(p, k, k0, keys, part, parts) ((void)0)
