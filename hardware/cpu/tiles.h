// Scores in tiles, for every instruction set, and the operations made of them, a
// file each: a file of kernels defines the vectors below and includes this one.
//
// A tile is up to 128 query rows by up to 128 keys. Keys and values are packed
// once, as panels of 16 columns: keys [variant, keys/16, key_dim, 16], values
// [keys/128, value_dim/16, 128, 16]. Scores are kept in
// log2, so that exp2 alone is needed; a row whose maximum does not move is not
// rescaled; sums are kept as vectors until a row is finished; the keys that no
// row of a strip of ROW_STEP sees are left out.
//
// To be defined before: vf with LANES floats and its operations; query_t and
// weight_t with ROW_STEP and KEY_STEP, the rows of a strip and the keys that
// its limit is a multiple of, and PASS_ROWS, the rows that go through scores,
// exponentials and values together; NAME(x); and the products of these types,
// as products.h has them for float32.
//
// Error: exp2 below 2e-7 relative (polynomial 7.5e-8, the rest rounding), tanh
// below 3e-7; sums of head_dim and of keys in float32, fused.
#include "packing.h"

enum { STRIPS = (TILE + ROW_STEP - 1) / ROW_STEP };

// --- scores ---

// The query rows that are being worked on, and one tile of their scores.
typedef struct {
    const trivium_head *head; // of row 0; the others differ in nothing but queries
    const trivium_problem *problem;
    const trivium_keys *keys; // where packed keys are: key n is number n - base there
    int64_t base;
    int rows, query_stride;
    query_t *query;           // [query_variants, TILE, query_stride]
    weight_t *weight;         // [TILE, TILE] exponentials of the scores, for the product with values
    float unit;               // what scores are to be multiplied with to be in log2; positive
    float *score, *other;     // [TILE, TILE]
    const trivium_head *from_head[TILE];
    int64_t row[TILE], position[TILE]; // rising
    int from, to;             // the rows of the pass that score, weight and limit are about
    int limit[STRIPS];        // keys of the tile that some row of the strip sees, a multiple of KEY_STEP
    uint8_t ready[256];       // query variants
} tile_rows;

static inline int query_stride(const trivium_problem *p) { return (int)round_up(p->key_dim, 32); }
static inline int64_t tile_floats(const trivium_problem *p) {
    return (int64_t)TILE * query_stride(p) * p->query_variants + 3 * TILE * TILE;
}

static float *start_tile(tile_rows *t, const trivium_head *h, float *scratch) {
    const trivium_problem *p = h->problem;
    t->head = h;
    t->problem = p;
    t->keys = h->keys;
    t->base = 0;
    t->rows = 0;
    t->query_stride = query_stride(p);
    t->score = scratch;
    t->other = scratch + TILE * TILE;
    t->weight = WEIGHTS_IN_PLACE ? (weight_t *)scratch : (weight_t *)(scratch + 2 * TILE * TILE);
    t->query = (query_t *)(scratch + 3 * TILE * TILE);
    // With a softcap, cap_scores makes them log2.
    t->unit = p->softcap || SCALED_QUERY ? 1 : fabsf(p->scale) * LOG2_E;
    memset(t->ready, 0, p->query_variants);
    return scratch + tile_floats(p);
}

static void add_row(tile_rows *t, const trivium_head *h, int64_t row) {
    t->from_head[t->rows] = h;
    t->row[t->rows] = row;
    t->position[t->rows++] = h->offset + row;
}

// What queries are multiplied with before the product: the sign of the scale, or
// all of it where queries are float32.
static inline float query_scale(const trivium_problem *p) {
    if (!SCALED_QUERY) return p->scale < 0 ? -1 : 1;
    return p->softcap ? p->scale / p->softcap : p->scale * LOG2_E;
}

static const query_t *query_variant(tile_rows *t, int variant) {
    const trivium_problem *p = t->problem;
    query_t *query = t->query + (int64_t)variant * TILE * t->query_stride;
    if (t->ready[variant]) return query;
    t->ready[variant] = 1;
    float scale = query_scale(p);
    _Alignas(64) float x[256] = {0};
    for (int r = 0; r < t->rows; r++) {
        const trivium_head *h = t->from_head[r];
        if (scale == 1 && !h->rotation[variant].table && copy_query(query + r * t->query_stride, &h->query, t->row[r], t->query_stride)) continue;
        load_floats(x, &h->query, t->row[r]);
        rotate_floats(x, p, &h->rotation[variant], t->row[r]);
        store_query(query + r * t->query_stride, x, t->query_stride, scale);
    }
    return query;
}

static inline int limit_of(const tile_rows *t, int r) { return t->limit[(r - t->from) / ROW_STEP]; }
static inline float *score_row(const tile_rows *t, int r) { return t->score + (r - t->from) * TILE; }

static void set_limits(tile_rows *t, int64_t k0, int keys) {
    for (int s = 0, r = t->from; r < t->to; s++, r += ROW_STEP) {
        int last = r + ROW_STEP < t->to ? r + ROW_STEP - 1 : t->to - 1;
        int64_t seen = last_visible(t->problem, t->position[last], t->head->keys->key.rows) - k0;
        t->limit[s] = (int)round_up(max_i64(0, min_i64(seen, keys)), KEY_STEP);
    }
}

static void multiply_keys(tile_rows *t, const trivium_band *band, int64_t k0, int keys, float *score) {
    const query_t *query = query_variant(t, band->query) + (long)t->from * t->query_stride;
    multiply_scores(query, t->query_stride, t->to - t->from, t->limit, t->problem, t->keys, band->key, k0 - t->base, keys, score, 0);
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
    int64_t low = t->position[t->from], high = t->position[t->to - 1];
    int first = 1;
    for (const trivium_band *b = p->band; b < p->band + p->bands; b++) {
        int64_t nearest = floor_div(low, b->chunk) - floor_div(k0 + keys - 1, b->chunk);
        int64_t farthest = floor_div(high, b->chunk) - floor_div(k0, b->chunk);
        if (p->causal) nearest = max_i64(nearest, 0);
        if (b->low > farthest || (b->high <= nearest && b->high != INT64_MAX)) continue;
        multiply_keys(t, b, k0, keys, first ? t->score : t->other);
        for (int r = t->from; r < t->to && !first; r++) {
            int64_t from, to;
            band_keys(b, t->position[r], &from, &to);
            from = max_i64(from - k0, 0);
            to = min_i64(to - k0, limit_of(t, r));
            if (from < to) memcpy(score_row(t, r) + from, t->other + (r - t->from) * TILE + from, sizeof(float) * (to - from));
        }
        first = 0;
    }
}

static void cap_scores(tile_rows *t) {
    const trivium_problem *p = t->problem;
    vf scale = vf_set1(p->softcap * LOG2_E), inner = vf_set1(SCALED_QUERY ? 1 : fabsf(p->scale) / p->softcap);
    for (int r = t->from; r < t->to; r++) {
        float *score = score_row(t, r);
        for (int j = 0; j < limit_of(t, r); j += LANES)
            vf_store(score + j, vf_mul(tanh_of(vf_mul(vf_load(score + j), inner)), scale));
    }
}

static void hide_keys(tile_rows *t, int64_t k0, int keys) {
    const trivium_problem *p = t->problem;
    for (int r = t->from; r < t->to; r++) {
        int limit = limit_of(t, r);
        int64_t from = first_visible(p, t->position[r]) - k0, to = last_visible(p, t->position[r], k0 + keys) - k0;
        float *score = score_row(t, r);
        for (int64_t j = 0; j < min_i64(from, limit); j++) score[j] = -INFINITY;
        for (int64_t j = max_i64(to, 0); j < limit; j++) score[j] = -INFINITY;
    }
}

// Whether some row of the pass does not see all of the keys that it is multiplied with.
static inline int hides_keys(const tile_rows *t, int64_t k0, int keys) {
    const trivium_problem *p = t->problem;
    return keys % KEY_STEP || k0 + keys > last_visible(p, t->position[t->from], t->head->keys->key.rows) ||
           k0 < first_visible(p, t->position[t->to - 1]);
}

static void hide_some_keys(tile_rows *t, int64_t k0, int keys) {
    if (hides_keys(t, k0, keys)) hide_keys(t, k0, keys);
}

// The scores of rows [from, to) with keys [k0, k0+keys), k0 a multiple of 16,
// within one chunk.
static void score_tile(tile_rows *t, int from, int to, int64_t k0, int keys) {
    const trivium_problem *p = t->problem;
    t->from = from;
    t->to = to;
    set_limits(t, k0, keys);
    if (p->bands == 1) multiply_keys(t, p->band, k0, keys, t->score);
    else multiply_bands(t, k0, keys);
    if (p->softcap) cap_scores(t);
    hide_some_keys(t, k0, keys);
}

// The first key of the next tile after k0, at most `end`.
static inline int64_t tile_end(int64_t k0, int64_t end) { return min_i64(end, (k0 / TILE + 1) * TILE); }

INLINE vf row_maximum(const float *score, int keys) {
    vf top = vf_load(score);
    for (int j = LANES; j < keys; j += LANES) top = vf_max(top, vf_load(score + j));
    return top;
}

INLINE vf exponential(vf score, vf unit, vf reference) { return exp2_below_one(vf_fma(score, unit, reference)); }

// What score*unit is to be added to, to be relative to the maximum.
static inline float reference_of(float top, float unit) { return top == -INFINITY ? 0 : -top * unit; }

// Writes exp2((score - top)*unit) and gives their sum.
INLINE vf exponentials_to(float *to, const float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0);
    for (int j = 0; j < keys; j += LANES) {
        vf e = exponential(vf_load(score + j), factor, reference);
        sum = vf_add(sum, e);
        vf_store(to + j, e);
    }
    return sum;
}

INLINE vf sum_exponentials(const float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0);
    for (int j = 0; j < keys; j += LANES) sum = vf_add(sum, exp2_score(vf_fma(vf_load(score + j), factor, reference)));
    return sum;
}

// Turns scores into their exponentials.
INLINE vf exponentials(float *score, int keys, float top, float unit) { return exponentials_to(score, score, keys, top, unit); }

static inline float exp2_scalar(float x) { return x < -126 ? 0 : exp2f(x); }

// Packs the keys of the chunk from n on, unless some thread has begun to.
static void pack_chunk_keys(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    uint32_t *state = k->keys_state + n / TILE;
    if (!packing_begins(state)) return;
    pack_keys(p, k, n, min_i64(TILE, k->key.rows - n));
    packing_done(state, TRIVIUM_PACKED);
}

static void NAME(pack)(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    for (int64_t at = 0; at < rows && !cancelled(p); at += TILE) pack_chunk_keys(p, k, first + at);
}

// Sees to it that the keys of the chunk from n on are packed. What another thread packs is
// waited for, but not idly.
static void need_keys(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    pack_chunk_keys(p, k, n);
    if (packing_state(k->keys_state + n / TILE) == TRIVIUM_PACKING && n + TILE < k->key.rows) pack_chunk_keys(p, k, n + TILE);
    await_packing(k->keys_state + n / TILE);
}

#include "attend.h"
#if PIPELINED
#include "overlap.h"
#endif
#include "representative.h"
#include "rowmass.h"
#include "blockscores.h"

static size_t NAME(scratch_bytes)(const trivium_problem *p, int64_t keys) {
    int64_t attend = (int64_t)TILE * (value_panels(p) * PANEL + LANES) + (int64_t)NAME(pack_bytes)(p, TILE) / 4 + 16;
    int64_t group = TRIVIUM_GROUP_HEADS * (tile_floats(p) + row_mass_floats(keys));
    return sizeof(float) * (size_t)max_i64(group, tile_floats(p) + max_i64(attend, representative_floats(keys)));
}
