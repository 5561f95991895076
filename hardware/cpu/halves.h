// Packing in halves, for scores of numbers that are not bfloat16 on hardware that
// multiplies those: included between elements.h and tiles.h by a file that defines
// the products.
//
// A number is the sum of two bfloat16, its high and its low half, to 2^-18 of it;
// a product is high.high + high.low + low.high, to 2^-16.4 of its size at most and
// far less on average, with sums in float32.
//
// Keys are packed as bf16.h packs them, [variant, half, keys/16, key_dim/2 pairs of
// columns, 16 keys, 2]. A row of queries is its high halves and then its low ones.
typedef uint32_t query_t; // of two halves
typedef float weight_t;
enum { WEIGHTS_IN_PLACE = 1, SCALED_QUERY = 0, DEPTH = 32 /* columns that key_dim is padded to */ };
#define exp2_score exp2_below_one

static inline int value_panels(const trivium_problem *p) { return (void)p, 0; }
static inline int64_t padded_dim(const trivium_problem *p) { return round_up(p->key_dim, DEPTH); }
// From the high halves of a panel to the low ones.
static inline int64_t to_low(const trivium_problem *p, const trivium_keys *k) { return round_up(k->key.rows, TILE) * padded_dim(p); }
static inline uint16_t *key_panel(const trivium_problem *p, const trivium_keys *k, int variant, int64_t n) {
    return (uint16_t *)k->packed + 2 * variant * to_low(p, k) + n * padded_dim(p);
}

// One panel more than there are keys, since keys are looked at by the two.
static size_t NAME(pack_bytes)(const trivium_problem *p, int64_t rows) {
    return sizeof(uint16_t) * (size_t)((2 * round_up(rows, TILE) * p->key_variants + PANEL) * padded_dim(p));
}

// The halves of 32 numbers.
INLINE void split_halves(vf a, vf b, __m512i *high, __m512i *low) {
    *high = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    vf ahead = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(*high)), 16));
    vf behind = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(*high, 1)), 16));
    *low = (__m512i)_mm512_cvtne2ps_pbh(vf_sub(b, behind), vf_sub(a, ahead));
}

static void store_query(query_t *to, const float *x, int n, float scale) {
    uint16_t *high = (uint16_t *)to, *low = high + n;
    for (int i = 0; i < n; i += 2 * LANES) {
        __m512i h, l;
        split_halves(vf_mul(vf_load(x + i), vf_set1(scale)), vf_mul(vf_load(x + i + LANES), vf_set1(scale)), &h, &l);
        _mm512_storeu_si512(high + i, h);
        _mm512_storeu_si512(low + i, l);
    }
}

// A bfloat16 is its own high half.
static inline int copy_query(query_t *to, const trivium_matrix *m, int64_t row, int n) {
    if (m->dtype != TRIVIUM_BFLOAT16) return 0;
    uint16_t *high = memset(to, 0, sizeof(query_t) * n);
    memcpy(high, (const uint16_t *)m->data + row * m->stride, sizeof(uint16_t) * m->cols);
    return 1;
}

// rows: [16, stride], of which `depth` columns are packed.
static void pack_panel(uint16_t *to, int64_t low, const float *rows, int64_t stride, int depth) {
    for (int i = 0; i < depth; i += DEPTH) {
        vf half[2][LANES];
        for (int r = 0; r < PANEL; r++) {
            __m512i h, l;
            split_halves(vf_load(rows + r * stride + i), vf_load(rows + r * stride + i + LANES), &h, &l);
            half[0][r] = _mm512_castsi512_ps(h);
            half[1][r] = _mm512_castsi512_ps(l);
        }
        for (int which = 0; which < 2; which++) {
            vf_transpose(half[which]);
            for (int r = 0; r < PANEL; r++) vf_store((float *)(to + which * low + i * PANEL + r * 2 * PANEL), half[which][r]);
        }
    }
}

// Packs the keys of a chunk, of which there are `rows`.
static void pack_keys(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    _Alignas(64) float panel[PANEL * 256];
    int depth = (int)padded_dim(p);
    for (int64_t at = 0; at < TILE; at += PANEL) {
        int64_t have = max_i64(0, min_i64(PANEL, rows - at));
        for (int v = 0; v < p->key_variants; v++) {
            uint16_t *to = key_panel(p, k, v, first + at);
            if (have == PANEL && p->key_dim == depth && k->key.dtype == TRIVIUM_FLOAT32 && !k->rotation[v].table) {
                pack_panel(to, to_low(p, k), (const float *)k->key.data + (first + at) * k->key.stride, k->key.stride, depth);
                continue;
            }
            memset(panel, 0, sizeof panel);
            for (int64_t r = 0; r < have; r++) {
                load_floats(panel + r * 256, &k->key, first + at + r);
                rotate_floats(panel + r * 256, p, &k->rotation[v], first + at + r);
            }
            pack_panel(to, to_low(p, k), panel, 256, depth);
        }
    }
}

// Exponentials of float32 scores stay float32.
#define keep_weights(weight, score, keys, top, unit) exponentials_to(weight, score, keys, top, unit)
#define kept_weights(weight) vf_load(weight)
