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
    int asks;                 // the lines of memory that each group of rows asks for
    key_tile tile;
    weight_t *weight;         // [STRIP, TILE]
} pass;

// Rows of memory that will be needed, of so many lines each.
typedef struct {
    const char *row;
    int64_t stride;           // bytes
    int rows, lines, line;
    int write;
} region;

typedef struct {
    attention *a;
    const query_t *query;
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
    region wanted[2 * TOGETHER + 2]; // to be asked for from number `asking` on
    int wants, asking;
} pipeline;

static inline float reference_for(float top, float unit) {
    return top == -INFINITY ? FLT_MAX : -top * unit; // any finite score is far above what has not been seen
}

// Hides of a strip from row `from` on what it does not see of the CHUNK keys from k0 on, of which those from `end` on are nobody's.
static void hide_in_chunk(const tile_rows *t, int from, int64_t k0, int64_t end, float *score) {
    int rows = t->rows - from < STRIP ? t->rows - from : STRIP;
    const int64_t *position = t->position + from;
    if (first_visible(t->problem, position[rows - 1]) <= k0 && last_visible(t->problem, position[0], end) >= k0 + CHUNK) return;
    vf hidden = vf_set1(-INFINITY);
    for (int r = 0; r < rows; r++) {
        int64_t first = max_i64(first_visible(t->problem, position[r]) - k0, 0), last = last_visible(t->problem, position[r], end) - k0;
        uint32_t seen = last >= CHUNK ? ~0u : last > 0 ? (1u << last) - 1 : 0;
        seen &= first < CHUNK ? ~0u << first : 0;
        _mm512_mask_storeu_ps(score + r * CHUNK, (__mmask16)~seen, hidden);
        _mm512_mask_storeu_ps(score + r * CHUNK + LANES, (__mmask16)(~seen >> LANES), hidden);
    }
}

static void hide_chunk(const pipeline *l, float *score) {
    const pass *w = &l->weighed;
    hide_in_chunk(&l->a->tile, w->from, w->tile.k0 + l->chunk * CHUNK, w->tile.k0 + w->tile.keys, score);
}

// Asks for the next so many lines of what is wanted.
INLINE void ask(pipeline *l, int lines) {
    for (; lines > 0 && l->asking < l->wants; lines--) {
        region *w = &l->wanted[l->asking];
        const char *line = w->row + w->line * LINE;
        if (w->write) __builtin_prefetch(line, 1, 2);
        else __builtin_prefetch(line, 0, 2);
        if (++w->line < w->lines) continue;
        w->line = 0;
        w->row += w->stride;
        l->asking += !--w->rows;
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
            scale_weights(l->weighed.weight + r * TILE, l->chunk * CHUNK, shrink);
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

// exp2 of the scores of a group; part: what each row adds to its sum.
INLINE void group_exponents(vf x[2 * GROUP], vf part[GROUP], const pipeline *l, const float *score, int group) {
    chunk_exponents(x, l, score, group);
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; r++) {
        x[2 * r] = exp2_flushed(x[2 * r]);
        x[2 * r + 1] = exp2_flushed(x[2 * r + 1]);
        part[r] = vf_add(x[2 * r], x[2 * r + 1]);
    }
}

// The weights of four rows of a chunk.
INLINE void weigh_group(pipeline *l, const float *score, int group) {
    vf x[2 * GROUP], part[GROUP];
    group_exponents(x, part, l, score, group);
    // Of the sums, which are fewer: two weights of 2^(SLACK - 1) look without need. As integers, since a
    // row that is NaN must not hide what its neighbours need.
    __m512i top = _mm512_max_epu32(_mm512_max_epu32((__m512i)part[0], (__m512i)part[1]), _mm512_max_epu32((__m512i)part[2], (__m512i)part[3]));
    if (__builtin_expect(_mm512_cmpgt_epu32_mask(top, (__m512i)vf_set1(1 << SLACK)) != 0, 0)) {
        raise_tops(l, score, group);
        group_exponents(x, part, l, score, group);
    }
    float *sum = l->a->sum + (l->weighed.from + group) * LANES;
    weight_t *weight = l->weighed.weight + group * TILE;
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; r++) {
        vf_store(sum + r * LANES, vf_add(vf_load(sum + r * LANES), part[r]));
        store_weights(weight + r * TILE, l->chunk * CHUNK, x[2 * r], x[2 * r + 1]);
    }
    ask(l, l->weighed.asks);
}

// Does its share of exponentials after each step of products.
typedef struct { int done, due, steps; } shares;
INLINE void share(pipeline *l, const float *score, shares *s) {
    for (s->due += STRIP / GROUP; s->due >= s->steps; s->due -= s->steps, s->done += GROUP) weigh_group(l, score, s->done);
}

INLINE void score_chunk(pipeline *l, const pass *p, int chunk, const float *before, float *to, shares *s) {
    const tile_rows *t = &l->a->tile;
    long depth = padded_dim(t->problem), half = depth * PANEL, stride = t->query_stride;
    const uint16_t *query = (const uint16_t *)(l->query + p->from * stride);
    const uint16_t *key = key_panel(t->problem, t->keys, t->problem->band->key, p->tile.k0 + chunk * CHUNK);
    zero_2_2();
    for (long k = 0; k < depth; k += DEPTH) {
        step_2_2(query + k, stride * sizeof(query_t), stride, key + k * PANEL, HALVES * half, half);
        if (before) share(l, before, s);
    }
    store_2_2(to, CHUNK * 4L);
}

// Two panels of columns of the product of weights and values.
INLINE void value_columns(pipeline *l, const float *before, shares *s) {
    attention *a = l->a;
    const pass *p = &l->valued;
    const long half = TILE * PANEL;
    const uint16_t *weight = (const uint16_t *)p->weight, *values = value_row(a->tile.problem, a->tile.keys, p->tile.k0) + l->column * HALVES * half;
    float *c = a->out + (long)p->from * a->out_stride + l->column * PANEL;
    long stride = a->out_stride * 4L;
    if (p->begins) zero_2_2();
    else load_2_2(c, stride);
    for (int k = 0; k < p->chunks; k++) {
        step_2_2(weight + k * DEPTH, TILE * sizeof(weight_t), TILE, values + k * DEPTH * PANEL, HALVES * half, half);
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
    // Until the next pass has been weighed: the chunks left of this one, and the first of the next.
    int left = (value_panels(l->a->tile.problem) - l->column) / 2, stages = p && chunk ? p->chunks - chunk + 1 : 1;
    int columns = (left + stages - 1) / stages;
    float *before = l->chunk < 0 ? NULL : l->score[l->stages % 2 == 0];
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
        if (k.k0 % CHUNK || has_not_finite(t->keys, k.k0)) return 0;
    return 1;
}

static void want(pipeline *l, const void *data, int64_t stride, int rows, int64_t bytes, int write) {
    if (rows > 0) l->wanted[l->wants++] = (region){.row = data, .stride = stride, .rows = rows, .lines = (int)((bytes + LINE - 1) / LINE), .write = write};
}

static void want_rows(pipeline *l, const trivium_matrix *m, int64_t row, int64_t rows, int write) {
    int64_t bytes = dtype_bytes(m->dtype);
    want(l, (char *)m->data + row * m->stride * bytes, m->stride * bytes, (int)rows, m->cols * bytes, write);
}

// A tile of keys and values, or the rows that it is to be packed from.
static void want_tile(pipeline *l, const trivium_head *h, key_tile k) {
    const trivium_problem *p = h->problem;
    const trivium_keys *keys = h->keys;
    if (!k.keys || !keys->packed) return;
    int64_t chunk = k.k0 / TILE, first = chunk * TILE, rows = min_i64(TILE, keys->key.rows - first);
    if (packing_state(keys->values_state + chunk) == TRIVIUM_UNPACKED) {
        if (packing_state(keys->keys_state + chunk) == TRIVIUM_UNPACKED) want_rows(l, &keys->key, first, rows, 0);
        want_rows(l, &keys->value, first, rows, 0);
        return;
    }
    want(l, key_panel(p, h->keys, p->band->key, k.k0), 0, 1, k.keys * padded_dim(p) * 2 * HALVES, 0);
    want(l, value_row(p, h->keys, k.k0 / TILE * TILE), 0, 1, (int64_t)TILE * PANEL * value_panels(p) * 2 * HALVES, 0);
}

// What the last tiles of a call ask for: room for its output, and the queries and first tiles of the next call.
static void want_next(pipeline *l, const trivium_attend *c) {
    if (!c->partial) want_rows(l, &c->output, c->row, c->rows, 1);
    const trivium_attend *n = c->next;
    if (!n || !n->rows) return;
    want_rows(l, &n->head->query, n->row, n->rows, 0);
    key_tiles tiles = tiles_between(n, n->head->offset + n->row, n->head->offset + n->row + n->rows - 1);
    key_tile k;
    for (int i = 0; i < TOGETHER && (k = next_tile(&tiles)).keys; i++) want_tile(l, n->head, k);
}

// Lines that each of so many groups is to ask for.
static int asks_of(const pipeline *l, int64_t groups) {
    int64_t lines = groups - 1;
    for (int i = 0; i < l->wants; i++) lines += (int64_t)l->wanted[i].rows * l->wanted[i].lines;
    return groups > 0 ? (int)(lines / groups) : 0;
}

static int some_tiles(key_tiles *tiles, key_tile *some) {
    int count = 0;
    while (count < TOGETHER && (some[count] = next_tile(tiles)).keys) count++;
    return count;
}

static void attend_pipelined(attention *a, const trivium_attend *c, key_tiles *tiles) {
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
        memset(t->query + (long)t->problem->band->query * TILE * t->query_stride + (long)r * t->query_stride, 0, sizeof(query_t) * t->query_stride);
        vf_store(a->sum + r * LANES, vf_set1(0));
        a->top[r] = -INFINITY;
    }
    for (int r = 0; r < rows; r++) {
        l.reference[r] = reference_for(-INFINITY, l.unit);
        l.shrink[r] = 1;
    }
    unsigned control = _mm_getcsr();
    _mm_setcsr(control | _MM_FLUSH_ZERO_ON); // as exp2_flushed wants it
    key_tile near[TOGETHER], far[TOGETHER];
    int strips = rows / STRIP;
    for (int count = some_tiles(tiles, near), more; count && !cancelled(t->problem); count = more) {
        more = some_tiles(tiles, far);
        l.wants = l.asking = 0;
        for (int i = 0; i < more; i++) want_tile(&l, t->head, far[i]);
        if (!more) want_next(&l, c);
        int asks = asks_of(&l, (int64_t)(strips - 1) * count * CHUNKS * STRIP / GROUP);
        for (int from = 0; from < t->rows; from += STRIP)
            for (int i = 0; i < count; i++) {
                t->from = from;
                t->to = from + STRIP < t->rows ? from + STRIP : t->rows;
                set_limits(t, near[i].k0, near[i].keys);
                pass p = {.from = from, .chunks = t->limit[0] / CHUNK, .tile = near[i], .weight = t->weight + l.passes % 2 * STRIP * TILE};
                p.hidden = hides_keys(t, p.tile.k0, p.tile.keys);
                p.asks = from ? asks : 0; // the first strip brings its own keys
                for (int chunk = 0; chunk < p.chunks; chunk++) stage(&l, &p, chunk);
                l.passes += p.chunks > 0;
            }
        memcpy(near, far, sizeof near);
    }
    stage(&l, NULL, 0);
    finish_values(&l);
    _mm_setcsr(control);
    for (int from = 0; from < rows; from += STRIP)
        if (!l.begun[from / STRIP]) memset(a->out + (long)from * a->out_stride, 0, sizeof(float) * STRIP * a->out_stride);
}
