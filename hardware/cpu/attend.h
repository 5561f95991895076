// Attention of a tile of queries over its tiles of keys, in one pass: included by
// tiles.h.
typedef struct {
    tile_rows tile;
    float *out;               // [TILE, 16 value panels] not yet divided
    float *sum;               // [TILE, LANES]
    float *chunk;             // keys of one tile, packed
    trivium_rotation chunk_rotation[256];
    uint32_t chunk_state[2];  // of its keys and values
    const trivium_rest *rest; // whose keys are left out; NULL: none are
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

// Those that rows at the positions [from, to] see.
static key_tiles tiles_between(const trivium_attend *c, int64_t from, int64_t to) {
    const trivium_problem *p = c->head->problem;
    key_tiles k = {.call = c, .low = first_visible(p, from) / PANEL * PANEL, .high = last_visible(p, to, c->head->keys->key.rows)};
    if (c->block) return k;
    k.at = max_i64(c->first, k.low);
    k.end = min_i64(c->last, k.high);
    return k;
}

static key_tiles first_tiles(const trivium_attend *c, const tile_rows *t) {
    if (!t->rows) return (key_tiles){.call = c, .block = c->blocks}; // no keys either
    return tiles_between(c, t->position[0], t->position[t->rows - 1]);
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
        if (a->top[r] > -INFINITY) { // else all that there is is zero
            vf shrink = vf_set1(exp2_scalar((a->top[r] - highest) * t->unit));
            vf_store(sums, vf_mul(vf_load(sums), shrink));
            for (int j = 0; j < a->out_stride; j += LANES) vf_store(out + j, vf_mul(vf_load(out + j), shrink));
        }
        a->top[r] = highest;
    }
    vf sum = weights(t->weight + (r - t->from) * TILE, score, limit, a->top[r], t->unit);
    vf_store(sums, vf_add(vf_load(sums), sum));
}

// Packs the values of the chunk from n on, unless some thread has begun to.
static void pack_chunk_values(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    uint32_t *state = k->values_state + n / TILE;
    if (!packing_begins(state)) return;
    packing_done(state, pack_values(p, k, n, min_i64(TILE, k->value.rows - n)) ? TRIVIUM_NOT_FINITE : TRIVIUM_PACKED);
}

// Sees to it that all of these tiles are packed. What is packed here is still in the
// second-level cache when it is looked at.
static void pack_tiles(const trivium_problem *p, const trivium_keys *keys, key_tiles tiles) {
    key_tiles again = tiles;
    for (key_tile k = next_tile(&tiles); k.keys && !cancelled(p); k = next_tile(&tiles)) {
        pack_chunk_keys(p, keys, k.k0 / TILE * TILE);
        pack_chunk_values(p, keys, k.k0 / TILE * TILE);
    }
    for (key_tile k = next_tile(&again); k.keys; k = next_tile(&again)) {
        await_packing(keys->keys_state + k.k0 / TILE);
        await_packing(keys->values_state + k.k0 / TILE);
    }
}

// Whether some value of the chunk of key n is infinite or NaN. The weight of a key that a
// row does not see is zero, and zero times such a value is not: see multiply_seen_values.
static inline int has_not_finite(const trivium_keys *k, int64_t n) { return packing_state(k->values_state + n / TILE) == TRIVIUM_NOT_FINITE; }

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
    a->chunk_state[0] = a->chunk_state[1] = TRIVIUM_UNPACKED;
    chunk->keys_state = &a->chunk_state[0];
    chunk->values_state = &a->chunk_state[1];
    pack_chunk_keys(p, chunk, 0);
    pack_chunk_values(p, chunk, 0);
    t->keys = chunk;
    t->base = k.k0;
}

static void hide_kept(tile_rows *t, const trivium_rest *c, key_tile k) {
    for (int r = t->from; r < t->to; r++) {
        float *score = score_row(t, r);
        for (int64_t j = k.k0; j < c->first; j++) score[j - k.k0] = -INFINITY;
        for (int64_t i = 0; i < c->count; i++)
            if (c->kept[i] >= k.k0 && c->kept[i] < k.k0 + k.keys) score[c->kept[i] - k.k0] = -INFINITY;
    }
}

// The product with values one key at a time, leaving out the keys that a row
// does not see: for values that are not finite, which zero weights do not hide.
static void multiply_seen_values(attention *a, key_tile k) {
    tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    uint8_t left_out[TILE] = {0};
    if (a->rest) {
        for (int j = 0; j < k.keys; j++) left_out[j] = k.k0 + j < a->rest->first;
        for (int64_t i = 0; i < a->rest->count; i++)
            if (a->rest->kept[i] >= k.k0 && a->rest->kept[i] < k.k0 + k.keys) left_out[a->rest->kept[i] - k.k0] = 1;
    }
    _Alignas(64) float x[256];
    for (int j = 0; j < k.keys; j++) {
        if (left_out[j]) continue;
        load_floats(x, &t->keys->value, k.k0 - t->base + j);
        for (int r = t->from; r < t->to; r++) {
            if (k.k0 + j < first_visible(p, t->position[r]) || k.k0 + j >= last_visible(p, t->position[r], k.k0 + k.keys)) continue;
            float weight = weight_at(t->weight + (r - t->from) * TILE, j), *out = a->out + (long)r * a->out_stride;
            for (int i = 0; i < p->value_dim; i++) out[i] += weight * x[i];
        }
    }
}

static void attend_tile(attention *a, key_tile k, key_tile next) {
    tile_rows *t = &a->tile;
    trivium_keys chunk;
    if (!t->head->keys->packed) pack_tile(a, &chunk, k);
    for (int from = 0; from < t->rows; from += PASS_ROWS) {
        score_tile(t, from, from + PASS_ROWS < t->rows ? from + PASS_ROWS : t->rows, k.k0, k.keys);
        if (a->rest) hide_kept(t, a->rest, k);
        for (int r = t->from; r < t->to; r++) weigh_row(a, r, next);
        if (has_not_finite(t->keys, k.k0 - t->base) && (a->rest || hides_keys(t, k.k0, k.keys))) multiply_seen_values(a, k);
        else multiply_values(t->weight, t->to - t->from, t->limit, t->problem, t->keys, k.k0 - t->base, a->out + (long)from * a->out_stride,
                             a->out_stride);
    }
}

// What the outputs of a row that has seen its keys are to be multiplied with; writes its LSE where that is wanted.
static float end_row(const trivium_attend *c, const attention *a, int r) {
    float top = a->top[r] * a->tile.unit, sink = c->partial ? -INFINITY : c->sink * LOG2_E;
    float sum = vf_total(vf_load(a->sum + r * LANES)), scale = 0, lse = -INFINITY;
    if (top > -INFINITY || sum != sum) { // a maximum passes over NaN, a sum does not
        float highest = fmaxf(top, sink), shrink = 1, total = sum;
        if (sink > -INFINITY) {
            shrink = exp2_scalar(top - highest);
            total = sum * shrink + exp2_scalar(sink - highest);
        }
        scale = shrink / total;
        if (c->partial || c->lse) lse = (float)(((double)highest + log2f(total)) * LOG_2);
        if (total != total) scale = lse = total;
    }
    int64_t row = a->tile.row[r];
    int dim = a->tile.problem->value_dim;
    if (c->partial) c->partial[(row - c->row) * (dim + 1) + dim] = lse;
    else if (c->lse) c->lse[row] = lse;
    return scale;
}

static void finish_row(const trivium_attend *c, const attention *a, int r) {
    int64_t row = a->tile.row[r];
    const float *out = a->out + (long)r * a->out_stride;
    float scale = end_row(c, a, r);
    if (!c->partial) {
        store_floats(&c->output, row, out, scale);
        return;
    }
    int dim = a->tile.problem->value_dim;
    float *to = c->partial + (row - c->row) * (dim + 1);
    for (int j = 0; j < dim; j++) to[j] = out[j] * scale;
}

#if PIPELINED
#include "pipeline.h"
#else
#define pipeline_takes(a, tiles) 0
#define attend_pipelined(a, c, count, tiles) ((void)0)
#endif

static void attend_but(const trivium_attend *c, int32_t count, const trivium_rest *rest, void *scratch) {
    attention a;
    a.rest = rest;
    BEGIN_PRODUCTS();
    const trivium_problem *p = c->head->problem;
    a.out = start_tile(&a.tile, c->head, scratch);
    a.out_stride = value_panels(p) * PANEL;
    a.sum = a.out + TILE * a.out_stride;
    a.chunk = a.sum + TILE * LANES;
    for (int64_t r = 0; r < c->rows; r++)
        for (int i = 0; i < count; i++) add_row(&a.tile, c[i].head, c->row + r);
    key_tiles tiles = first_tiles(c, &a.tile);
    if (c->head->keys->packed) pack_tiles(p, c->head->keys, tiles);
    key_tiles first = tiles;
    key_tile k = next_tile(&first), next;
    int pipelined = pipeline_takes(&a, tiles); // clears outputs itself, and finishes its rows
    for (int r = 0; r < a.tile.rows; r++) {
        a.top[r] = -INFINITY;
        vf_store(a.sum + r * LANES, vf_set1(0));
        if (pipelined) continue;
        if (k.keys && c->head->keys->packed) prefetch_tile(p, c->head->keys, k.k0, k.keys, r, a.tile.rows);
        memset(a.out + (long)r * a.out_stride, 0, sizeof(float) * a.out_stride);
    }
    if (pipelined) attend_pipelined(&a, c, count, &tiles);
    else for (k = next_tile(&tiles); k.keys && !cancelled(p); k = next) {
        next = next_tile(&tiles);
        attend_tile(&a, k, next);
    }
    END_PRODUCTS();
    for (int r = 0; r < a.tile.rows && !pipelined; r++) finish_row(&c[r % count], &a, r);
}

static void NAME(attend)(const trivium_attend *c, int32_t count, void *scratch) { attend_but(c, count, NULL, scratch); }

static void NAME(rest)(const trivium_rest *c, void *scratch) {
    int dim = c->head->problem->value_dim;
    trivium_attend a = {.head = c->head, .partial = c->room, .row = c->row, .rows = c->rows, .first = c->first / PANEL * PANEL, .last = c->last};
    attend_but(&a, 1, c, scratch);
    for (int64_t r = 0; r < c->rows && !cancelled(c->head->problem); r++)
        add_rest(c, c->row + r, c->room + r * (dim + 1));
}
