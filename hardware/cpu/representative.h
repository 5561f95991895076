// Representative rows: included by tiles.h.
//
// One pass over the keys keeps exp2(score - maximum so far) of every row, in as
// many bytes as a weight; a second, over those numbers, scales them and adds up columns and
// diagonals, SKEW rows at a time, whose tile then stays in the first-level cache.
//
// On a busy Xeon with AMX, 8 heads of 128, 16k keys, processor time: 18 ms in
// bfloat16 and 52 in float32 with 32 rows a call, float32 exponentials that were
// scaled in place, and sums over whole rows of them; 14 and 39 as it is.
enum { SKEW = 32 };

static inline int64_t exponential_stride(int64_t keys) { return round_up(keys, TILE) + SKEW; } // no power of two
static inline int64_t representative_floats(int64_t keys) {
    return TRIVIUM_REPRESENTATIVE_ROWS * (exponential_stride(keys) + round_up(keys, TILE) / TILE);
}

typedef struct {
    tile_rows tile;
    weight_t *exponential;    // [rows, stride]
    int64_t stride, first, keys; // keys [first, keys) are seen, in whole tiles
    float *weight;            // [tiles, TRIVIUM_REPRESENTATIVE_ROWS] the maximum that the exponentials are
                              // relative to, and then what they are to be multiplied with
    float top[TRIVIUM_REPRESENTATIVE_ROWS];
    float sum[TRIVIUM_REPRESENTATIVE_ROWS * LANES];
} representative_rows;

// The exponentials of row r and the tile at k0, which has been scored.
static void keep_exponentials(representative_rows *a, int r, int64_t k0) {
    tile_rows *t = &a->tile;
    int limit = limit_of(t, r);
    float *score = score_row(t, r), *sum = a->sum + r * LANES;
    weight_t *to = a->exponential + r * a->stride + k0;
    vf high = limit ? row_maximum(score, limit) : vf_set1(-INFINITY);
    if (vf_any_above(high, vf_set1(a->top[r]))) {
        float next = vf_highest(high);
        vf_store(sum, vf_mul(vf_load(sum), vf_set1(exp2_scalar((a->top[r] - next) * t->unit))));
        a->top[r] = next;
    }
    vf_store(sum, vf_add(vf_load(sum), keep_weights(to, score, limit, a->top[r], t->unit)));
    memset(to + limit, 0, sizeof(weight_t) * (TILE - limit));
    a->weight[k0 / TILE * TRIVIUM_REPRESENTATIVE_ROWS + r] = a->top[r];
}

// Writes the lse of each row, and makes weights of the maxima.
static void weigh_tiles(representative_rows *a, float *lse) {
    const tile_rows *t = &a->tile;
    float share[TRIVIUM_REPRESENTATIVE_ROWS] = {0}, reference[TRIVIUM_REPRESENTATIVE_ROWS] = {0};
    for (int r = 0; r < t->rows; r++) {
        float total = vf_total(vf_load(a->sum + r * LANES));
        lse[r] = a->top[r] == -INFINITY ? -INFINITY : (float)((a->top[r] * t->unit + log2((double)total)) * LOG_2);
        reference[r] = reference_of(a->top[r], t->unit);
        share[r] = a->top[r] == -INFINITY ? 0 : 1 / total;
    }
    for (int64_t k0 = a->first; k0 < a->keys; k0 += TILE) {
        float *w = a->weight + k0 / TILE * TRIVIUM_REPRESENTATIVE_ROWS;
        for (int r = 0; r < t->rows; r += LANES)
            vf_store(w + r, vf_mul(exponential(vf_load(w + r), vf_set1(t->unit), vf_load(reference + r)), vf_load(share + r)));
    }
}

// Scales the exponentials of rows [from, from+rows), at most SKEW, writes the
// columns, or adds to them, and adds to the slashes.
static void sum_rows(const representative_rows *a, int from, int rows, float *columns, float *slashes) {
    _Alignas(64) float skew[SKEW][SKEW + TILE], column[TILE]; // of the tile before, its last keys, and of this one
    const tile_rows *t = &a->tile;
    int64_t all = t->head->keys->key.rows, origin = t->position[from];
    for (int r = 0; r < rows; r++) memset(skew[r], 0, sizeof(float) * SKEW);
    for (int64_t k0 = a->first; k0 < a->keys + SKEW; k0 += TILE) {
        const float *weight = a->weight + k0 / TILE * TRIVIUM_REPRESENTATIVE_ROWS + from;
        const weight_t *e = a->exponential + from * a->stride + k0;
        for (int j = 0; j < TILE; j += LANES) {
            vf sum = vf_set1(0);
            for (int r = 0; r < rows; r++) {
                vf x = k0 < a->keys ? vf_mul(kept_weights(e + r * a->stride + j), vf_set1(weight[r])) : vf_set1(0);
                vf_store(skew[r] + SKEW + j, x);
                sum = vf_add(sum, x);
            }
            vf_store(column + j, sum);
        }
        for (int64_t j = 0; j < min_i64(TILE, all - k0); j++) columns[k0 + j] = (from ? columns[k0 + j] : 0) + column[j];
        // Row r at key j is at distance origin + r - j: at u, the key that row 0 would have.
        for (int u = 0; u < TILE; u += LANES) {
            vf sum = vf_set1(0);
            for (int r = 0; r < rows; r++) sum = vf_add(sum, vf_load(skew[r] + u + r));
            float lanes[LANES];
            vf_store(lanes, sum);
            int64_t nearest = origin - (k0 - SKEW + u) - (LANES - 1);
            if (nearest >= 0 && nearest + LANES <= all) {
                for (int i = 0; i < LANES; i++) slashes[nearest + i] += lanes[LANES - 1 - i];
                continue;
            }
            for (int i = 0; i < LANES; i++)
                if (nearest + i >= 0 && nearest + i < all) slashes[nearest + i] += lanes[LANES - 1 - i];
        }
        for (int r = 0; r < rows; r++) memcpy(skew[r], skew[r] + TILE, sizeof(float) * SKEW);
    }
}

// Scores the rows against all keys and keeps their exponentials.
static void score_rows(representative_rows *a) {
    tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    int64_t all = t->head->keys->key.rows;
    int passes = (t->rows + PASS_ROWS - 1) / PASS_ROWS;
    for (int64_t k0 = a->first; k0 < a->keys && !cancelled(p); k0 += TILE) {
        need_keys(p, t->head->keys, k0);
        for (int pass = 0; pass < passes; pass++) {
            if (k0 + TILE < a->keys) prefetch_keys(p, t->head->keys, k0 + TILE, TILE, pass, passes);
            int from = pass * PASS_ROWS;
            score_tile(t, from, from + PASS_ROWS < t->rows ? from + PASS_ROWS : t->rows, k0, (int)min_i64(TILE, all - k0));
            for (int r = t->from; r < t->to; r++) keep_exponentials(a, r, k0);
        }
    }
}

#if PIPELINED
// The same where products and exponentials overlap.
static void score_rows_overlapped(representative_rows *a) {
    overlapped_rows rows = {.tile = a->tile, .kept = a->exponential, .stride = a->stride};
    const tile_rows *t = &rows.tile;
    const trivium_problem *p = t->problem;
    const trivium_keys *keys = t->head->keys;
    int64_t all = keys->key.rows;
    int strips = (t->rows + STRIP - 1) / STRIP, parts = strips * CHUNKS;
    overlap o;
    start_rows(&rows);
    start_overlap(&o, t->score);
    for (int64_t k0 = a->first; k0 < a->keys && !cancelled(p); k0 += TILE) {
        need_keys(p, keys, k0);
        want_keys(&o, p, keys, k0 + TILE, parts);
        for (int part = 0; part < parts; part++) {
            int from = part % strips * STRIP, to = from + STRIP < t->rows ? from + STRIP : t->rows;
            int64_t at = k0 + part / strips * CHUNK;
            *next_piece(&o) = (piece){
                .rows = &rows, .from = from, .first = k0, .k0 = at, .end = min_i64(all, k0 + TILE),
                .hidden = at + CHUNK > last_visible(p, t->position[from], all) || at < first_visible(p, t->position[to - 1]),
                .top = part / strips == CHUNKS - 1 ? a->weight + k0 / TILE * TRIVIUM_REPRESENTATIVE_ROWS + from : NULL,
            };
            stage_kept(&o);
        }
    }
    next_piece(&o)->rows = NULL;
    stage_kept(&o);
    _mm_setcsr(o.control);
    memcpy(a->top, rows.top, sizeof a->top);
    for (int from = 0; from < t->rows; from += STRIP)
        memcpy(a->sum + from * LANES, rows.sum[rows.turn[from / STRIP]] + from * LANES, sizeof(float) * STRIP * LANES);
}
#else
#define overlaps(p) 0
#define score_rows_overlapped(a) ((void)0)
#endif

static void NAME(representative)(const trivium_representative *c, void *scratch) {
    representative_rows a;
    tile_rows *t = &a.tile;
    const trivium_problem *p = c->head->problem;
    int64_t all = c->head->keys->key.rows, origin = c->head->offset + c->row; // position of the first row
    a.stride = exponential_stride(all);
    a.weight = start_tile(t, c->head, scratch);
    a.exponential = (weight_t *)(a.weight + TRIVIUM_REPRESENTATIVE_ROWS * (round_up(all, TILE) / TILE));
    a.first = first_visible(p, origin) / TILE * TILE;
    a.keys = round_up(last_visible(p, origin + c->rows - 1, all), TILE);
    for (int r = 0; r < c->rows; r++) {
        add_row(t, c->head, c->row + r);
        a.top[r] = -INFINITY;
        vf_store(a.sum + r * LANES, vf_set1(0));
    }
    memset(a.weight, 0, sizeof(float) * TRIVIUM_REPRESENTATIVE_ROWS * (a.keys / TILE));
    BEGIN_PRODUCTS();
    if (overlaps(p)) score_rows_overlapped(&a);
    else score_rows(&a);
    END_PRODUCTS();
    weigh_tiles(&a, c->lse);
    memset(c->columns, 0, sizeof(float) * all);
    memset(c->slashes, 0, sizeof(float) * all);
    for (int from = 0; from < t->rows && !cancelled(p); from += SKEW)
        sum_rows(&a, from, t->rows - from < SKEW ? t->rows - from : SKEW, c->columns, c->slashes);
}
