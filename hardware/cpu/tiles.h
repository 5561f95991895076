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
// To be defined before: vf with LANES floats and its operations; query_t and
// weight_t with ROW_STEP and KEY_STEP, the rows of a strip and the keys that
// its limit is a multiple of, and PASS_ROWS, the rows that go through scores,
// exponentials and values together; NAME(x); and the products of these types,
// as products.h has them for float32.
//
// Error: exp2 below 2e-7 relative (polynomial 7.5e-8, the rest rounding), tanh
// below 3e-7; sums of head_dim and of keys in float32, fused.
enum {
    STRIPS = (TILE + ROW_STEP - 1) / ROW_STEP,
    MARGIN = TRIVIUM_REPRESENTATIVE_ROWS, // zeros around the exponentials of a representative call
};

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

static const query_t *query_variant(tile_rows *t, int variant) {
    const trivium_problem *p = t->problem;
    query_t *query = t->query + (int64_t)variant * TILE * t->query_stride;
    if (t->ready[variant]) return query;
    t->ready[variant] = 1;
    float scale = p->scale < 0 ? -1 : 1; // all of it, where queries are float32
    if (SCALED_QUERY) scale = p->softcap ? p->scale / p->softcap : p->scale * LOG2_E;
    _Alignas(64) float x[256] = {0};
    for (int r = 0; r < t->rows; r++) {
        load_floats(x, &t->from_head[r]->query, t->row[r]);
        rotate_floats(x, p, &t->from_head[r]->rotation[variant], t->row[r]);
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
    multiply_scores(query, t->query_stride, t->to - t->from, t->limit, t->problem, t->keys, band->key, k0 - t->base, keys, score);
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
    if (keys % KEY_STEP || k0 + keys > last_visible(p, t->position[from], t->head->keys->key.rows) ||
        k0 < first_visible(p, t->position[to - 1])) hide_keys(t, k0, keys);
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

// Turns scores into exp2((score - top)*unit) and gives their sum.
INLINE vf exponentials(float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0);
    for (int j = 0; j < keys; j += LANES) {
        vf e = exponential(vf_load(score + j), factor, reference);
        sum = vf_add(sum, e);
        vf_store(score + j, e);
    }
    return sum;
}

static inline float exp2_scalar(float x) { return x < -126 ? 0 : exp2f(x); }

static void NAME(pack)(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    for (int64_t at = 0; at < rows && !cancelled(p); at += TILE) pack_chunk(p, k, first + at, min_i64(TILE, rows - at));
}

// --- attention ---

typedef struct {
    tile_rows tile;
    float *out;               // [TILE, 16 value panels] not yet divided
    float *sum;               // [TILE, LANES]
    float *chunk;             // keys of one tile, packed
    trivium_rotation chunk_rotation[256];
    float top[TILE];          // maximum of the scores so far
    int out_stride;
} attention;

// The tiles of keys that a call looks at, in order.
typedef struct {
    const trivium_attend *call;
    int64_t low, high;        // keys that some row sees
    int64_t block, at, end;   // the next block of the list, the run of neighbours at work
} key_tiles;

typedef struct {
    int64_t k0;
    int keys;                 // 0: there are no more
} key_tile;

static key_tiles first_tiles(const trivium_attend *c, const tile_rows *t) {
    int64_t low = first_visible(t->problem, t->position[0]) / PANEL * PANEL;
    int64_t high = last_visible(t->problem, t->position[t->rows - 1], t->head->keys->key.rows);
    key_tiles k = {.call = c, .low = low, .high = high};
    if (c->block) return k;
    k.at = max_i64(c->first, low);
    k.end = min_i64(c->last, high);
    return k;
}

static key_tile next_tile(key_tiles *k) {
    const trivium_attend *c = k->call;
    while (k->at >= k->end) {
        if (!c->block || k->block >= c->blocks) return (key_tile){0, 0};
        int64_t first = k->block++;
        while (k->block < c->blocks && c->block[k->block] == c->block[k->block - 1] + 1) k->block++;
        k->at = max_i64(c->block[first] * c->block_size, k->low);
        k->end = min_i64((c->block[k->block - 1] + 1) * c->block_size, k->high);
    }
    key_tile tile = {k->at, (int)(tile_end(k->at, k->end) - k->at)};
    k->at += tile.keys;
    return tile;
}

// The exponentials of a row that has been scored; `next` will be the next tile.
static void weigh_row(attention *a, int r, key_tile next) {
    tile_rows *t = &a->tile;
    int limit = limit_of(t, r);
    float *score = score_row(t, r), *sums = a->sum + r * LANES, *out = a->out + (long)r * a->out_stride;
    if (next.keys && t->head->keys->packed) prefetch_tile(t->problem, t->head->keys, next.k0, next.keys, r, t->rows);
    if (!limit) return;
    vf top = row_maximum(score, limit);
    if (vf_any_above(top, vf_set1(a->top[r]))) {
        float highest = vf_highest(top);
        vf shrink = vf_set1(exp2_scalar((a->top[r] - highest) * t->unit));
        a->top[r] = highest;
        vf_store(sums, vf_mul(vf_load(sums), shrink));
        for (int j = 0; j < a->out_stride; j += LANES) vf_store(out + j, vf_mul(vf_load(out + j), shrink));
    }
    vf sum = weights(t->weight + (r - t->from) * TILE, score, limit, a->top[r], t->unit);
    vf_store(sums, vf_add(vf_load(sums), sum));
}

// Packs the keys of a tile by themselves, for rows too few to pack all keys for.
static void pack_tile(attention *a, trivium_keys *chunk, key_tile k) {
    tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    trivium_rotation *rotation = a->chunk_rotation;
    *chunk = *t->head->keys;
    for (int v = 0; v < p->key_variants; v++) {
        rotation[v] = chunk->rotation[v];
        if (rotation[v].table) rotation[v].table += k.k0 * rotation[v].step;
    }
    chunk->rotation = rotation;
    chunk->packed = a->chunk;
    chunk->key.data = (char *)chunk->key.data + k.k0 * chunk->key.stride * dtype_bytes(chunk->key.dtype);
    chunk->value.data = (char *)chunk->value.data + k.k0 * chunk->value.stride * dtype_bytes(chunk->value.dtype);
    chunk->key.rows = chunk->value.rows = k.keys;
    pack_chunk(p, chunk, 0, k.keys);
    t->keys = chunk;
    t->base = k.k0;
}

static void attend_tile(attention *a, key_tile k, key_tile next) {
    tile_rows *t = &a->tile;
    trivium_keys chunk;
    if (!t->head->keys->packed) pack_tile(a, &chunk, k);
    for (int from = 0; from < t->rows; from += PASS_ROWS) {
        score_tile(t, from, from + PASS_ROWS < t->rows ? from + PASS_ROWS : t->rows, k.k0, k.keys);
        for (int r = t->from; r < t->to; r++) weigh_row(a, r, next);
        multiply_values(t->weight, t->to - t->from, t->limit, t->problem, t->keys, k.k0 - t->base, a->out + (long)from * a->out_stride,
                        a->out_stride);
    }
}

static void finish_row(const trivium_attend *c, attention *a, int r) {
    int64_t row = a->tile.row[r];
    float *out = a->out + (long)r * a->out_stride;
    float top = a->top[r] * a->tile.unit, sink = c->partial ? -INFINITY : c->sink * LOG2_E;
    float sum = vf_total(vf_load(a->sum + r * LANES)), scale = 0, lse = -INFINITY;
    if (top > -INFINITY || top != top) {
        float highest = fmaxf(top, sink);
        float shrink = exp2_scalar(top - highest);
        float total = sum * shrink + exp2_scalar(sink - highest);
        scale = shrink / total;
        lse = (float)((highest + log2((double)total)) * LOG_2);
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

static void NAME(attend)(const trivium_attend *c, int32_t count, void *scratch) {
    attention a;
    BEGIN_PRODUCTS();
    const trivium_problem *p = c->head->problem;
    a.out = start_tile(&a.tile, c->head, scratch);
    a.out_stride = value_panels(p) * PANEL;
    a.sum = a.out + TILE * a.out_stride;
    a.chunk = a.sum + TILE * LANES;
    for (int64_t r = 0; r < c->rows; r++)
        for (int i = 0; i < count; i++) add_row(&a.tile, c[i].head, c->row + r);
    for (int r = 0; r < a.tile.rows; r++) a.top[r] = -INFINITY;
    memset(a.out, 0, sizeof(float) * a.tile.rows * a.out_stride);
    memset(a.sum, 0, sizeof(float) * a.tile.rows * LANES);
    key_tiles tiles = first_tiles(c, &a.tile);
    for (key_tile k = next_tile(&tiles), next; k.keys && !cancelled(p); k = next) {
        next = next_tile(&tiles);
        attend_tile(&a, k, next);
    }
    END_PRODUCTS();
    for (int r = 0; r < a.tile.rows; r++) finish_row(&c[r % count], &a, r);
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
        add_row(&t, c->head, c->row + r);
        top[r] = -INFINITY;
        memset(exponential + r * stride, 0, sizeof(float) * MARGIN);
    }
    int64_t origin = c->head->offset + c->row; // position of the first row
    int64_t keys = round_up(last_visible(p, origin + c->rows - 1, all), KEY_STEP);
    int64_t first = first_visible(p, origin) / TILE * TILE;
    for (int r = 0; r < c->rows; r++) {
        memset(exponential + r * stride + MARGIN, 0, sizeof(float) * min_i64(first, keys));
        memset(exponential + r * stride + MARGIN + keys, 0, sizeof(float) * (MARGIN + 16));
    }
    memset(weight, 0, sizeof(float) * TRIVIUM_REPRESENTATIVE_ROWS * (first / TILE));
    BEGIN_PRODUCTS();
    for (int64_t k0 = first; k0 < keys && !cancelled(p); k0 += TILE) {
        int n = (int)(min_i64(keys, k0 + TILE) - k0);
        score_tile(&t, 0, t.rows, k0, (int)min_i64(n, all - k0));
        for (int r = 0; r < t.rows; r++) {
            int limit = limit_of(&t, r);
            float *score = score_row(&t, r), *to = exponential + r * stride + MARGIN + k0;
            vf high = limit ? row_maximum(score, limit) : vf_set1(-INFINITY);
            if (vf_any_above(high, vf_set1(top[r]))) {
                float next = vf_highest(high);
                vf_store(sum + r * LANES, vf_mul(vf_load(sum + r * LANES), vf_set1(exp2_scalar((top[r] - next) * t.unit))));
                top[r] = next;
            }
            vf_store(sum + r * LANES, vf_add(vf_load(sum + r * LANES), exponentials(score, limit, top[r], t.unit)));
            memcpy(to, score, sizeof(float) * limit);
            memset(to + limit, 0, sizeof(float) * (n - limit));
            weight[k0 / TILE * TRIVIUM_REPRESENTATIVE_ROWS + r] = top[r];
        }
    }
    END_PRODUCTS();
    for (int r = 0; r < t.rows; r++) {
        float total = vf_total(vf_load(sum + r * LANES));
        c->lse[r] = top[r] == -INFINITY ? -INFINITY : (float)((top[r] * t.unit + log2((double)total)) * LOG_2);
        for (int64_t tile = first / TILE; tile * TILE < keys; tile++) {
            float *w = &weight[tile * TRIVIUM_REPRESENTATIVE_ROWS + r];
            *w = *w == -INFINITY ? 0 : exp2_scalar((*w - top[r]) * t.unit) / total;
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
static void add_mass(const tile_rows *t, int r, float *top, float *mass) {
    int limit = limit_of(t, r);
    if (!limit) return;
    float *score = score_row(t, r), next = fmaxf(*top, vf_highest(row_maximum(score, limit)));
    float before = *top == -INFINITY ? 0 : *mass * exp2_scalar((*top - next) * t->unit);
    *mass = before + vf_total(exponentials(score, limit, next, t->unit));
    *top = next;
}

static void NAME(row_mass)(const trivium_row_mass *c, void *scratch) {
    tile_rows t;
    const trivium_problem *p = c->head->problem;
    int64_t all = c->head->keys->key.rows, blocks = (all + c->block_size - 1) / c->block_size;
    float *tops = start_tile(&t, c->head, scratch); // [blocks, TILE]
    for (int64_t i = 0; i < c->rows; i++) {
        add_row(&t, c->head, c->row[i]);
        memset(c->mass + c->place[i] * blocks, 0, sizeof(float) * blocks);
    }
    for (int64_t i = 0; i < blocks * TILE; i++) tops[i] = -INFINITY;
    int64_t last = last_visible(p, c->head->offset + c->row[c->rows - 1], all);
    BEGIN_PRODUCTS();
    for (int64_t k0 = first_visible(p, c->head->offset + c->row[0]) / PANEL * PANEL; k0 < last && !cancelled(p);) {
        int64_t block = k0 / c->block_size, end = tile_end(k0, min_i64(last, (block + 1) * c->block_size));
        for (int from = 0; from < t.rows; from += PASS_ROWS) {
            score_tile(&t, from, from + PASS_ROWS < t.rows ? from + PASS_ROWS : t.rows, k0, (int)(end - k0));
            for (int r = t.from; r < t.to; r++) add_mass(&t, r, &tops[block * TILE + r], &c->mass[c->place[r] * blocks + block]);
        }
        k0 = end;
    }
    END_PRODUCTS();
    for (int r = 0; r < t.rows; r++) {
        float *mass = c->mass + c->place[r] * blocks, top = -INFINITY;
        double sum = 0;
        for (int64_t b = 0; b < blocks; b++) top = fmaxf(top, tops[b * TILE + r]);
        for (int64_t b = 0; b < blocks; b++) {
            mass[b] = tops[b * TILE + r] == -INFINITY ? 0 : mass[b] * exp2_scalar((tops[b * TILE + r] - top) * t.unit);
            sum += mass[b];
        }
        for (int64_t b = 0; b < blocks && sum > 0; b++) mass[b] = (float)(mass[b] / sum);
        c->lse[c->place[r]] = top == -INFINITY ? -INFINITY : (float)((top * t.unit + log2(sum)) * LOG_2);
    }
}

static size_t NAME(scratch_bytes)(const trivium_problem *p, int64_t keys) {
    int64_t attend = (int64_t)TILE * (value_panels(p) * PANEL + LANES) + (int64_t)NAME(pack_bytes)(p, TILE) / 4 + 16;
    int64_t mass = (keys + 15) / 16 * TILE;
    return sizeof(float) * (size_t)(tile_floats(p) + max_i64(attend, max_i64(mass, representative_floats(keys))));
}
