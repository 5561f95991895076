// Attention of a tile of queries by matrix units that work beside the vector
// units: included by attend.h, for the kernels that define PIPELINED.
//
// A pass is a strip of 32 rows against a tile of up to 128 keys, a chunk 32 keys
// of it. In a stage, products of the scores of one chunk and of values with the
// weights of the pass before alternate with the exponentials of the chunk before,
// four rows at a time, so that both units have work within the processor's window.
// Scores of a chunk, 4 KiB, never leave the first-level cache.
//
// Exponentials are relative to a maximum that is raised only when a score lies more
// than SLACK above it, so that weights are at most 2^SLACK; what has been summed
// up is scaled then, which is rare after the first chunk.
//
// Taken by problems without softcap and with one band; others, and tiles that begin in the
// middle of a step or hold values that are not finite, go the way of attend_tile.
enum { STRIP = 32, CHUNK = 32, CHUNKS = TILE / CHUNK, GROUP = 4, SLACK = 8, TOGETHER = 8, LINE = 64 };

typedef struct {
    int from, chunks;         // rows [from, from + STRIP)
    int begins;               // nothing has been summed up for its rows
    int hidden;               // some row does not see some of the keys
    key_tile tile;
    const char *ahead_key, *ahead_value; // what a group of rows asks for: so many lines of each
    int ahead_keys, ahead_values;
    uint16_t *weight;         // [STRIP, TILE]
} pass;

typedef struct {
    attention *a;
    const uint16_t *query;
    float unit;
    float reference[TILE];    // what score*unit is to be added to
    float shrink[TILE];       // what outputs are still to be multiplied with
    int shrinks;              // some of them are not 1
    int begun[TILE / STRIP];  // strips that have outputs
    float *score[2];          // [STRIP, CHUNK] of the chunk being scored and of that before
    int stages, passes;
    pass weighed;             // whose chunk number `chunk` is to be weighed
    int chunk;                // -1: none
    pass valued;              // whose products with values remain from column pair `column` on
    int column;
} pipeline;

static inline float reference_for(float top, float unit) {
    return top == -INFINITY ? FLT_MAX : -top * unit; // any finite score is far above what has not been seen
}

static void hide_chunk(const pipeline *l, float *score) {
    const tile_rows *t = &l->a->tile;
    const pass *w = &l->weighed;
    int64_t k0 = w->tile.k0 + l->chunk * CHUNK;
    for (int r = 0; r < STRIP && w->from + r < t->rows; r++) {
        int64_t m = t->position[w->from + r], from = first_visible(t->problem, m) - k0;
        int64_t to = last_visible(t->problem, m, w->tile.k0 + w->tile.keys) - k0;
        for (int64_t j = 0; j < min_i64(from, CHUNK); j++) score[r * CHUNK + j] = -INFINITY;
        for (int64_t j = max_i64(to, 0); j < CHUNK; j++) score[r * CHUNK + j] = -INFINITY;
    }
}

// Raises the maximum of the rows of a group that have a score far above it.
static __attribute__((noinline)) void raise_tops(pipeline *l, const float *score, int group) {
    attention *a = l->a;
    for (int r = group; r < group + GROUP; r++) {
        int row = l->weighed.from + r;
        float high = vf_highest(vf_max(vf_load(score + r * CHUNK), vf_load(score + r * CHUNK + LANES)));
        if (!(high * l->unit + l->reference[row] > SLACK)) continue;
        if (a->top[row] > -INFINITY) {
            float shrink = exp2_scalar((a->top[row] - high) * l->unit), *sum = a->sum + row * LANES;
            vf_store(sum, vf_mul(vf_load(sum), vf_set1(shrink)));
            l->shrink[row] *= shrink;
            l->shrinks = 1;
            uint16_t *weight = l->weighed.weight + r * TILE;
            for (int j = 0; j < l->chunk * CHUNK; j += LANES) vf_store_bf16(weight + j, vf_mul(vf_load_bf16(weight + j), vf_set1(shrink)));
        }
        a->top[row] = high;
        l->reference[row] = reference_for(high, l->unit);
    }
}

INLINE void chunk_exponents(vf x[2 * GROUP], const pipeline *l, const float *score, int group) {
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; r++) {
        vf reference = vf_set1(l->reference[l->weighed.from + group + r]), unit = vf_set1(l->unit);
        x[2 * r] = vf_fma(vf_load(score + (group + r) * CHUNK), unit, reference);
        x[2 * r + 1] = vf_fma(vf_load(score + (group + r) * CHUNK + LANES), unit, reference);
    }
}

// The weights of four rows of a chunk.
INLINE void weigh_group(pipeline *l, const float *score, int group) {
    vf x[2 * GROUP], top;
    chunk_exponents(x, l, score, group);
    top = vf_max(vf_max(vf_max(x[0], x[1]), vf_max(x[2], x[3])), vf_max(vf_max(x[4], x[5]), vf_max(x[6], x[7])));
    if (__builtin_expect(vf_any_above(top, vf_set1(SLACK)), 0)) {
        raise_tops(l, score, group);
        chunk_exponents(x, l, score, group);
    }
    float *sum = l->a->sum + (l->weighed.from + group) * LANES;
    uint16_t *weight = l->weighed.weight + group * TILE + l->chunk * CHUNK;
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; r++) {
        vf low = exp2_short(x[2 * r]), high = exp2_short(x[2 * r + 1]);
        vf_store(sum + r * LANES, vf_add(vf_load(sum + r * LANES), vf_add(low, high)));
        _mm512_storeu_si512(weight + r * TILE, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    pass *w = &l->weighed;
    for (int i = 0; i < w->ahead_keys; i++, w->ahead_key += LINE) __builtin_prefetch(w->ahead_key, 0, 2);
    for (int i = 0; i < w->ahead_values; i++, w->ahead_value += LINE) __builtin_prefetch(w->ahead_value, 0, 2);
}

// Does its share of exponentials after each step of products.
typedef struct { int done, due, steps; } shares;
INLINE void share(pipeline *l, const float *score, shares *s) {
    for (s->due += STRIP / GROUP; s->due >= s->steps; s->due -= s->steps, s->done += GROUP) weigh_group(l, score, s->done);
}

// A step of c[32, 32] += a . b: tiles 0 - 3 are the sums.
INLINE void step_2_2(const uint16_t *a, long a_stride, const uint16_t *b, long panel) {
    _tile_stream_loadd(6, b, 64); // keys and values must not drive the rest from the first-level cache
    _tile_loadd(4, a, a_stride);
    _tile_stream_loadd(7, b + panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + 16 * (a_stride / 2), a_stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

INLINE void score_chunk(pipeline *l, const pass *p, int chunk, const float *before, float *to, shares *s) {
    const tile_rows *t = &l->a->tile;
    long depth = padded_dim(t->problem), panel = depth * PANEL;
    const uint16_t *query = l->query + (long)p->from * t->query_stride;
    const uint16_t *key = key_panel(t->problem, t->keys, t->problem->band->key, p->tile.k0 + chunk * CHUNK);
    zero_2_2();
    for (long k = 0; k < depth; k += DEPTH) {
        step_2_2(query + k, t->query_stride * 2L, key + k * PANEL, panel);
        if (before) share(l, before, s);
    }
    store_2_2(to, CHUNK * 4L);
}

// Two panels of columns of the product of weights and values.
INLINE void value_columns(pipeline *l, const float *before, shares *s) {
    attention *a = l->a;
    const pass *p = &l->valued;
    const uint16_t *values = value_row(a->tile.problem, a->tile.keys, p->tile.k0) + (long)l->column * TILE * PANEL;
    float *c = a->out + (long)p->from * a->out_stride + l->column * PANEL;
    long stride = a->out_stride * 4L;
    if (p->begins) zero_2_2();
    else load_2_2(c, stride);
    for (int k = 0; k < p->chunks; k++) {
        step_2_2(p->weight + k * DEPTH, TILE * 2L, values + k * DEPTH * PANEL, TILE * PANEL);
        if (before) share(l, before, s);
    }
    store_2_2(c, stride);
    l->column += 2;
}

static void finish_values(pipeline *l) {
    for (shares s = {0}; l->column < value_panels(l->a->tile.problem);) value_columns(l, NULL, &s);
}

// The pass has been weighed: its product with values is to be done next.
static void pass_on(pipeline *l) {
    finish_values(l);
    attention *a = l->a;
    int *begun = &l->begun[l->weighed.from / STRIP];
    for (int r = l->weighed.from; l->shrinks && r < l->weighed.from + STRIP; r++) {
        float *out = a->out + (long)r * a->out_stride;
        for (int j = 0; j < a->out_stride && *begun && l->shrink[r] != 1; j += LANES) vf_store(out + j, vf_mul(vf_load(out + j), vf_set1(l->shrink[r])));
        l->shrink[r] = 1;
    }
    l->shrinks = 0;
    l->valued = l->weighed;
    l->valued.begins = !*begun;
    *begun = 1;
    l->column = 0;
}

// Scores a chunk (NULL: none), weighs that before, and does a share of the products with values.
static void stage(pipeline *l, const pass *p, int chunk) {
    int panels = value_panels(l->a->tile.problem), columns = (panels / 2 + CHUNKS - 1) / CHUNKS;
    float *before = l->chunk < 0 ? NULL : l->score[l->stages % 2 == 0];
    columns = columns < (panels - l->column) / 2 ? columns : (panels - l->column) / 2;
    shares s = {.steps = (p ? (int)padded_dim(l->a->tile.problem) / DEPTH : 0) + columns * l->valued.chunks};
    if (before && l->weighed.hidden) hide_chunk(l, before);
    MEMORY_BARRIER();
    if (p) score_chunk(l, p, chunk, before, l->score[l->stages % 2], &s);
    for (int i = 0; i < columns; i++) value_columns(l, before, &s);
    for (; before && s.done < STRIP; s.done += GROUP) weigh_group(l, before, s.done);
    MEMORY_BARRIER();
    if (before && l->chunk + 1 == l->weighed.chunks) pass_on(l);
    l->stages++;
    l->chunk = p ? chunk : -1;
    if (p) l->weighed = *p;
}

static int pipeline_takes(const attention *a, key_tiles tiles) {
    const tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    if (p->bands != 1 || p->softcap || a->rest || !t->keys->packed || t->rows <= STRIP / 2 || value_panels(p) % 2) return 0;
    for (key_tile k = next_tile(&tiles); k.keys; k = next_tile(&tiles))
        if (k.k0 % CHUNK || *chunk_flag(p, t->keys, k.k0)) return 0;
    return 1;
}

// Makes the groups of a pass ask for one of so many parts of a tile.
static void ask_ahead(pass *p, const tile_rows *t, key_tile k, int part, int parts) {
    int groups = p->chunks * (STRIP / GROUP) * parts;
    if (!groups || !k.keys) return;
    p->ahead_keys = (int)(k.keys * padded_dim(t->problem) * 2 / LINE + groups - 1) / groups;
    p->ahead_values = (TILE * PANEL * value_panels(t->problem) * 2 / LINE + groups - 1) / groups;
    p->ahead_key = (const char *)key_panel(t->problem, t->keys, t->problem->band->key, k.k0) + (long)part * groups / parts * p->ahead_keys * LINE;
    p->ahead_value = (const char *)value_row(t->problem, t->keys, k.k0 / TILE * TILE) + (long)part * groups / parts * p->ahead_values * LINE;
}

static int some_tiles(key_tiles *tiles, key_tile *some) {
    int count = 0;
    while (count < TOGETHER && (some[count] = next_tile(tiles)).keys) count++;
    return count;
}

static void attend_pipelined(attention *a, key_tiles *tiles) {
    pipeline l;
    tile_rows *t = &a->tile;
    int rows = (int)round_up(t->rows, STRIP);
    l.a = a;
    l.query = query_variant(t, t->problem->band->query);
    l.unit = t->unit;
    l.stages = l.passes = l.shrinks = 0;
    l.chunk = -1;
    l.column = value_panels(t->problem);
    l.valued.chunks = 0;
    memset(l.begun, 0, sizeof l.begun);
    l.score[0] = t->score;
    l.score[1] = t->score + STRIP * CHUNK;
    for (int r = t->rows; r < rows; r++) { // rows that are nobody's
        memset(t->query + (long)t->problem->band->query * TILE * t->query_stride + (long)r * t->query_stride, 0, sizeof(uint16_t) * t->query_stride);
        vf_store(a->sum + r * LANES, vf_set1(0));
        a->top[r] = -INFINITY;
    }
    for (int r = 0; r < rows; r++) {
        l.reference[r] = reference_for(-INFINITY, l.unit);
        l.shrink[r] = 1;
    }
    key_tile near[TOGETHER], far[TOGETHER];
    int strips = rows / STRIP;
    for (int count = some_tiles(tiles, near), more; count && !cancelled(t->problem); count = more) {
        more = some_tiles(tiles, far);
        for (int from = 0; from < t->rows; from += STRIP)
            for (int i = 0; i < count; i++) {
                t->from = from;
                t->to = from + STRIP < t->rows ? from + STRIP : t->rows;
                set_limits(t, near[i].k0, near[i].keys);
                pass p = {.from = from, .chunks = t->limit[0] / CHUNK, .tile = near[i], .weight = t->weight + l.passes % 2 * STRIP * TILE};
                p.hidden = hides_keys(t, p.tile.k0, p.tile.keys);
                if (from && i < more) ask_ahead(&p, t, far[i], from / STRIP - 1, strips - 1);
                for (int chunk = 0; chunk < p.chunks; chunk++) stage(&l, &p, chunk);
                l.passes += p.chunks > 0;
            }
        memcpy(near, far, sizeof near);
    }
    stage(&l, NULL, 0);
    finish_values(&l);
    for (int from = 0; from < rows; from += STRIP)
        if (!l.begun[from / STRIP]) memset(a->out + (long)from * a->out_stride, 0, sizeof(float) * STRIP * a->out_stride);
}
