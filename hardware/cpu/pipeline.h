// Attention of a tile of queries by matrix units that work beside the vector
// units: included by attend.h, for the kernels that define PIPELINED.
//
// A pass is a strip of 32 rows against a tile of up to 128 keys, a chunk 32 keys
// of it. In a stage, products of the scores of one chunk and of values with the
// weights of the pass before alternate with the exponentials of the chunk before
// and with the outputs of a strip that has seen its last key, a row after each
// product, so that both units have work within the processor's window. What a step of
// products reads is loaded during the one before, each tile as soon as its register is
// free. Scores of a chunk, 4 KiB, never leave the first-level cache.
//
// Exponentials are relative to a maximum, at first that of the first chunk, that is
// raised only when a score lies more than SLACK above it, so that weights are at most
// 2^SLACK; a chunk for which it must be is weighed again, and what has been summed
// up is scaled.
//
// Taken by problems without softcap and with one band; others, and tiles that begin in the
// middle of a step or hold values that are not finite, go the way of attend_tile.
enum { STRIP = 32, CHUNK = 32, CHUNKS = TILE / CHUNK, GROUP = 4, SLACK = 8, TOGETHER = 8, LINE = 64, LINES = 4 };
// Of tiles that are not packed yet, keys and values, and of queries and outputs: rows of up to 1 KiB.
enum { REGIONS = (2 * TOGETHER + 2) * 4 };

typedef struct {
    int from, chunks;         // rows [from, from + STRIP)
    int begins, ends;         // nothing has been summed up for its rows; nothing will be after it
    int hidden;               // some row does not see some of the keys
    int asks;                 // the lines of memory, by LINES, that each group of rows asks for
    key_tile tile;
    weight_t *weight;         // [STRIP, TILE]
} pass;

// Memory that will be needed: so many rows of LINES lines.
typedef struct {
    const char *row;
    int64_t stride;           // bytes
    int64_t rows;
    int write;
} region;

typedef struct {
    attention *a;
    const trivium_attend *call;
    const query_t *query;
    long query_stride;
    float unit;
    float reference[TILE];    // what score*unit is to be added to
    float shrink[TILE];       // what outputs are still to be multiplied with
    int shrinks;              // some of them are not 1
    int begun[TILE / STRIP];  // strips that have outputs
    float *sum[2];            // [TILE, LANES] of exponentials, and room for those with the chunk being weighed
    int summed[TILE / STRIP]; // which of the two a strip's are in
    float *score[2];          // [STRIP, CHUNK] of the chunk being scored and of that before
    int stages, passes;
    pass weighed;             // whose chunk number `chunk` is to be weighed
    int chunk;                // -1: none
    pass valued;              // whose products with values remain from column pair `column` on
    int column;
    const uint16_t *loaded;   // the panels of the step whose tiles are loaded
    int stores;               // outputs are stored here, else by finish_row
    float scale[TILE];        // what the outputs of strips without further keys are to be multiplied with
    int stored[TILE / STRIP]; // strips that are, or will be once all stages are done
    int storing, first, end;  // the strip whose columns [first, end) the next stage is to store
    region wanted[REGIONS];   // to be asked for from number `asking` on
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

// Asks for so many times LINES lines of what is wanted.
INLINE void ask(pipeline *l, int times) {
    for (; times > 0 && l->asking < l->wants; times--) {
        region *w = &l->wanted[l->asking];
        if (w->write)
            for (int i = 0; i < LINES; i++) __builtin_prefetch(w->row + i * LINE, 1, 2);
        else
            for (int i = 0; i < LINES; i++) __builtin_prefetch(w->row + i * LINE, 0, 2);
        w->row += w->stride;
        l->asking += !--w->rows;
    }
}

// What the lanes of each of 16 rows come to, in the order of _mm512_reduce_*.
#define OF_ROWS(name, of)                                                                                                          \
    INLINE vf name(const vf row[LANES]) {                                                                                          \
        vf x[LANES];                                                                                                               \
        for (int i = 0; i < 8; i++) {                                                                                              \
            vf a = row[rows_in_order[i]], b = row[rows_in_order[i + 8]];                                                           \
            x[i] = of(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));                                         \
        }                                                                                                                          \
        for (int i = 0; i < 4; i++) x[i] = of(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd)); \
        for (int i = 0; i < 2; i++) {                                                                                              \
            __m512d a = _mm512_castps_pd(x[i]), b = _mm512_castps_pd(x[i + 2]);                                                    \
            x[i] = of(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));                     \
        }                                                                                                                          \
        return of(_mm512_shuffle_ps(x[0], x[1], 0x88), _mm512_shuffle_ps(x[0], x[1], 0xdd));                                       \
    }
static const uint8_t rows_in_order[LANES] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
OF_ROWS(maximum_of_rows, vf_max)
OF_ROWS(sum_of_rows, vf_add)

// The sums of LANES rows of LANES.
static inline vf sums_of_rows(const float *sum) {
    vf row[LANES];
    for (int i = 0; i < LANES; i++) row[i] = vf_load(sum + i * LANES);
    return sum_of_rows(row);
}

// The greatest of sums, as integers, since a row that is NaN must not hide what others need.
INLINE vf greatest_sum(vf most, vf part) { return (vf)_mm512_max_epu32((__m512i)most, (__m512i)part); }

// Whether some score lies far above its maximum. Sums are looked at, which are fewer: two exponentials of 2^(SLACK - 1)
// say so without need.
INLINE int some_far_above(vf most) {
    return _mm512_cmpgt_epu32_mask((__m512i)most, (__m512i)vf_set1(1 << SLACK)) != 0;
}

// The maxima of a strip that nothing has been seen of, from its first chunk.
static void begin_tops(pipeline *l, const float *score) {
    for (int r = 0; r < STRIP; r += LANES) {
        vf row[LANES], none = vf_set1(-INFINITY);
        for (int i = 0; i < LANES; i++) row[i] = row_maximum(score + (r + i) * CHUNK, CHUNK);
        vf top = maximum_of_rows(row);
        __mmask16 seen = _mm512_cmp_ps_mask(top, none, _CMP_GT_OQ); // nor NaN
        vf_store(l->a->top + l->weighed.from + r, _mm512_mask_blend_ps(seen, none, top));
        vf_store(l->reference + l->weighed.from + r, _mm512_mask_mul_ps(vf_set1(FLT_MAX), seen, top, vf_set1(-l->unit)));
    }
}

// Raises the maximum of the rows of a strip that have a score far above it.
static __attribute__((noinline)) void raise_tops(pipeline *l, const float *score) {
    attention *a = l->a;
    for (int r = 0; r < STRIP; r++) {
        int row = l->weighed.from + r;
        float high = vf_highest(row_maximum(score + r * CHUNK, CHUNK));
        if (!(high * l->unit + l->reference[row] > SLACK)) continue;
        if (a->top[row] > -INFINITY) {
            float shrink = exp2_scalar((a->top[row] - high) * l->unit), *sum = l->sum[l->summed[row / STRIP]] + row * LANES;
            vf_store(sum, vf_mul(vf_load(sum), vf_set1(shrink)));
            l->shrink[row] *= shrink;
            l->shrinks = 1;
            scale_weights(l->weighed.weight + r * TILE, l->chunk * CHUNK, shrink);
        }
        a->top[row] = high;
        l->reference[row] = reference_for(high, l->unit);
    }
}

// What the vector units do during a stage: the weights of the rows of a chunk, and
// outputs, a row of a pair of columns each.
struct vector_work {
    pipeline *l;
    const float *score, *reference, *before;
    float *sum;
    weight_t *weight;
    int column;               // of the weights
    vf unit, most;            // the greatest sum of two weights
    long row, rows;           // [0, STRIP) are weights, those behind them outputs
    long due, share;          // in 2^-16 of a row: what is to have been done, and what more of it each product makes
};

INLINE void weigh_chunk_row(struct vector_work *w, long r) {
    vf reference = vf_set1(w->reference[r]);
    vf x = exp2_flushed(vf_fma(vf_load(w->score + r * CHUNK), w->unit, reference));
    vf y = exp2_flushed(vf_fma(vf_load(w->score + r * CHUNK + LANES), w->unit, reference));
    vf part = vf_add(x, y);
    w->most = greatest_sum(w->most, part);
    vf_store(w->sum + r * LANES, vf_add(vf_load(w->before + r * LANES), part));
    store_weights(w->weight + r * TILE, w->column, x, y);
    if (r % GROUP == 0) ask(w->l, w->l->weighed.asks);
}

static __attribute__((noinline)) void store_outputs(const pipeline *l, int number) {
    int row = l->storing + number % STRIP, column = (l->first + number / STRIP * 2) * PANEL;
    if (row >= l->a->tile.rows) return;
    const float *out = l->a->out + (long)row * l->a->out_stride + column;
    const trivium_matrix *m = &l->call->output;
    vf x = vf_mul(vf_load(out), vf_set1(l->scale[row])), y = vf_mul(vf_load(out + LANES), vf_set1(l->scale[row]));
    int64_t at = (l->call->row + row) * m->stride + column;
    if (m->dtype == TRIVIUM_BFLOAT16) {
        vf_store_bf16((uint16_t *)m->data + at, x);
        vf_store_bf16((uint16_t *)m->data + at + LANES, y);
    } else if (m->dtype == TRIVIUM_FLOAT32) {
        vf_store((float *)m->data + at, x);
        vf_store((float *)m->data + at + LANES, y);
    } else {
        vf_store_f16((uint16_t *)m->data + at, x);
        vf_store_f16((uint16_t *)m->data + at + LANES, y);
    }
}

INLINE void work_row(struct vector_work *w) {
    long row = w->row++;
    if (row < STRIP) weigh_chunk_row(w, row);
    else store_outputs(w->l, row - STRIP);
}

INLINE void meanwhile(struct vector_work *w) {
    if (!w) return;
    for (w->due += w->share; w->row << 16 < w->due;) work_row(w);
}

static struct vector_work vector_work(pipeline *l, const float *score, long products) {
    const pass *p = &l->weighed;
    int strip = p->from / STRIP;
    long row = score ? 0 : STRIP, rows = STRIP + (l->end - l->first) / 2 * STRIP;
    return (struct vector_work){
        .l = l, .score = score, .reference = l->reference + p->from, .weight = p->weight, .column = l->chunk * CHUNK, .unit = vf_set1(l->unit),
        .before = l->sum[l->summed[strip]] + p->from * LANES, .sum = l->sum[!l->summed[strip]] + p->from * LANES, .most = vf_set1(0),
        .row = row, .rows = rows, .due = row << 16, .share = products ? ((rows - row) << 16) / products : 0};
}

// Ends what is left of it.
static void end_work(pipeline *l, struct vector_work *w) {
    while (w->row < w->rows) work_row(w);
    l->first = l->end = 0;
    if (!w->score) return;
    if (__builtin_expect(some_far_above(w->most), 0)) {
        raise_tops(l, w->score);
        for (long r = 0; r < STRIP; r++) weigh_chunk_row(w, r);
    }
    l->summed[l->weighed.from / STRIP] ^= 1;
}

// Adds up a product of so many steps, the first of which is loaded, and loads the
// first of what comes next.
INLINE void multiply(operands o, long steps, const operands *next, struct vector_work *w) {
    for (; steps; steps--) {
        operands n = o;
        n.a += DEPTH;
        n.b += DEPTH * PANEL;
        if (steps == 1) n = *next;
        step_2_2(&o, &n, w);
        o = n;
    }
}

static operands scored(const pipeline *l, const pass *p, int chunk) {
    const tile_rows *t = &l->a->tile;
    long half = padded_dim(t->problem) * PANEL;
    return (operands){.a = (const uint16_t *)(l->query + p->from * l->query_stride), .a_stride = l->query_stride * sizeof(query_t), .a_low = l->query_stride,
                      .b = key_panel(t->problem, t->keys, t->problem->band->key, p->tile.k0 + chunk * CHUNK), .panel = HALVES * half, .b_low = half};
}

static operands valued(const pipeline *l) {
    const tile_rows *t = &l->a->tile;
    const long half = TILE * PANEL;
    return (operands){.a = (const uint16_t *)l->valued.weight, .a_stride = TILE * sizeof(weight_t), .a_low = TILE,
                      .b = value_row(t->problem, t->keys, l->valued.tile.k0) + l->column * HALVES * half, .panel = HALVES * half, .b_low = half};
}

static float *value_sums(const pipeline *l) { return l->a->out + (long)l->valued.from * l->a->out_stride + l->column * PANEL; }

static void settle_sums(pipeline *l, int from) {
    int *summed = &l->summed[from / STRIP];
    if (*summed) memcpy(l->sum[0] + from * LANES, l->sum[1] + from * LANES, sizeof(float) * STRIP * LANES);
    *summed = 0;
}

// What the outputs of a strip without further keys are to be multiplied with.
static void end_sums(pipeline *l, int from) {
    attention *a = l->a;
    settle_sums(l, from);
    l->stored[from / STRIP] = 1;
    if (l->call->lse || l->call->sink > -INFINITY) {
        for (int r = from; r < from + STRIP && r < a->tile.rows; r++) l->scale[r] = end_row(l->call, a, r);
        return;
    }
    for (int r = from; r < from + STRIP; r += LANES) {
        vf total = sums_of_rows(a->sum + r * LANES), top = vf_load(a->top + r);
        // A maximum passes over NaN, a sum does not.
        __mmask16 some = _mm512_cmp_ps_mask(top, vf_set1(-INFINITY), _CMP_GT_OQ) | _mm512_cmp_ps_mask(total, total, _CMP_UNORD_Q);
        vf_store(l->scale + r, _mm512_maskz_div_ps(some, vf_set1(1), total));
    }
}

// The pass has been weighed: its product with values is to be done next.
static void pass_on(pipeline *l) {
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
    if (l->weighed.ends && l->stores) end_sums(l, l->weighed.from);
}

// Scores a chunk (NULL: none), weighs that before, does a share of the products with
// values, and stores the outputs of the stage before.
static void stage(pipeline *l, const pass *p, int chunk) {
    // Until the next pass has been weighed: the chunks left of this one, and the first of the next.
    int panels = value_panels(l->a->tile.problem), left = (panels - l->column) / 2, stages = p && chunk ? p->chunks - chunk + 1 : 1;
    float *before = l->chunk < 0 ? NULL : l->score[l->stages % 2 == 0];
    int columns = before || p ? (left + stages - 1) / stages : left > 0;
    int depth = p ? (int)padded_dim(l->a->tile.problem) / DEPTH : 0;
    if (before && l->weighed.hidden) hide_chunk(l, before);
    if (before && !l->chunk && !l->begun[l->weighed.from / STRIP]) begin_tops(l, before);
    struct vector_work w = vector_work(l, before, (depth + columns * l->valued.chunks) * STEP_PRODUCTS);
    MEMORY_BARRIER();
    operands after = {0}; // of the next stage, if that is known
    if (p && chunk + 1 < p->chunks) after = scored(l, p, chunk + 1);
    if (p) {
        operands o = scored(l, p, chunk), next = columns ? valued(l) : after;
        if (l->loaded != o.b) load_operands(&o);
        zero_2_2();
        multiply(o, depth, next.b ? &next : &o, &w);
        store_2_2(l->score[l->stages % 2], CHUNK * 4L);
        l->loaded = next.b;
    }
    int first = l->column;
    for (int i = 0; i < columns; i++, l->column += 2) {
        operands o = valued(l), next = after;
        if (l->loaded != o.b) load_operands(&o);
        if (i + 1 < columns) next = o, next.b += 2 * o.panel;
        float *c = value_sums(l);
        long stride = l->a->out_stride * 4L;
        if (l->valued.begins) zero_2_2();
        else load_2_2(c, stride);
        multiply(o, l->valued.chunks, next.b ? &next : &o, &w);
        store_2_2(c, stride);
        l->loaded = next.b;
    }
    end_work(l, &w);
    MEMORY_BARRIER();
    if (l->valued.ends && l->stores) {
        l->storing = l->valued.from;
        l->first = first;
        l->end = l->column;
    }
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

static void want(pipeline *l, const void *data, int64_t stride, int64_t rows, int64_t bytes, int write) {
    const int64_t step = LINES * LINE;
    if (stride == bytes) { // no gaps
        rows = (rows * bytes + step - 1) / step;
        stride = bytes = step;
    }
    for (int64_t at = 0; at < bytes && rows > 0; at += step)
        l->wanted[l->wants++] = (region){.row = (const char *)data + at, .stride = stride, .rows = rows, .write = write};
}

static void want_rows(pipeline *l, const trivium_matrix *m, int64_t row, int64_t rows, int write) {
    int64_t bytes = dtype_bytes(m->dtype);
    want(l, (char *)m->data + row * m->stride * bytes, m->stride * bytes, rows, m->cols * bytes, write);
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
    // Some lines of each KiB: the processor sees what is read in order, and brings the others.
    const int64_t step = 4 * LINES * LINE;
    want(l, key_panel(p, keys, p->band->key, k.k0), step, k.keys * padded_dim(p) * 2 * HALVES / step, LINES * LINE, 0);
    want(l, value_row(p, keys, first), step, TILE * PANEL * value_panels(p) * 2 * HALVES / step, LINES * LINE, 0);
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

// How often each of so many groups is to ask.
static int asks_of(const pipeline *l, int64_t groups) {
    int64_t times = groups - 1;
    for (int i = 0; i < l->wants; i++) times += l->wanted[i].rows;
    return groups > 0 ? (int)(times / groups) : 0;
}

static int some_tiles(key_tiles *tiles, key_tile *some) {
    int count = 0;
    while (count < TOGETHER && (some[count] = next_tile(tiles)).keys) count++;
    return count;
}

// The chunks of a tile that some row of a strip sees: none of a tile, none of those behind it.
static int seen_chunks(tile_rows *t, int from, key_tile k) {
    if (!k.keys) return 0;
    t->from = from;
    t->to = from + STRIP < t->rows ? from + STRIP : t->rows;
    set_limits(t, k.k0, k.keys);
    return t->limit[0] / CHUNK;
}

// Queries where they lie, if they need neither turning nor padding and lie without gaps, so that their lines spread
// over the cache. NULL: they are to be copied.
static const query_t *queries_in_place(const tile_rows *t, int count) {
    const trivium_head *h = t->head;
    const trivium_matrix *m = &h->query;
    int variant = t->problem->band->query;
    if (HALVES > 1 || count > 1 || t->rows % STRIP || h->rotation[variant].table || query_scale(t->problem) != 1) return NULL;
    if (m->dtype != t->problem->dtype || m->stride != t->query_stride || m->cols != t->query_stride) return NULL;
    return (const query_t *)m->data + t->row[0] * m->stride;
}

// The rows of a strip of which not all outputs are stored yet.
static void finish_strip(pipeline *l, int from, int count) {
    attention *a = l->a;
    if (!l->begun[from / STRIP]) memset(a->out + (long)from * a->out_stride, 0, sizeof(float) * STRIP * a->out_stride);
    settle_sums(l, from);
    for (int r = from; r < from + STRIP && r < a->tile.rows; r++) finish_row(&l->call[r % count], a, r);
}

static void attend_pipelined(attention *a, const trivium_attend *c, int count, key_tiles *tiles) {
    _Alignas(64) float sums[TILE * LANES];
    pipeline l = {.a = a, .call = c, .unit = a->tile.unit, .chunk = -1, .sum = {a->sum, sums}};
    tile_rows *t = &a->tile;
    const trivium_problem *p = t->problem;
    int rows = (int)round_up(t->rows, STRIP), panels = value_panels(p);
    l.stores = count == 1 && !c->partial && p->value_dim == panels * PANEL;
    l.query = queries_in_place(t, count);
    l.query_stride = t->query_stride;
    if (!l.query) l.query = query_variant(t, p->band->query);
    l.column = panels;
    l.score[0] = t->score;
    l.score[1] = t->score + STRIP * CHUNK;
    for (int r = t->rows; r < rows; r++) { // rows that are nobody's
        memset(t->query + (long)p->band->query * TILE * t->query_stride + (long)r * t->query_stride, 0, sizeof(query_t) * t->query_stride);
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
    for (int some = some_tiles(tiles, near), more; some && !cancelled(p); some = more) {
        more = some_tiles(tiles, far);
        l.wants = l.asking = 0;
        for (int i = 0; i < more; i++) want_tile(&l, t->head, far[i]);
        if (!more) want_next(&l, c);
        int asks = asks_of(&l, (int64_t)strips * some * CHUNKS * STRIP / GROUP);
        for (int from = 0; from < t->rows; from += STRIP)
            for (int i = 0, chunks = seen_chunks(t, from, near[0]), then; i < some && chunks; i++, chunks = then) {
                then = seen_chunks(t, from, i + 1 < some ? near[i + 1] : far[0]); // far[0] has no keys if there is none
                pass p = {.from = from, .chunks = chunks, .ends = !then, .asks = asks, .tile = near[i], .weight = t->weight + l.passes++ % 2 * STRIP * TILE};
                p.hidden = hides_keys(t, p.tile.k0, p.tile.keys);
                for (int chunk = 0; chunk < chunks; chunk++) stage(&l, &p, chunk);
            }
        memcpy(near, far, sizeof near);
    }
    do stage(&l, NULL, 0);
    while (l.chunk >= 0 || l.column < panels || l.first < l.end);
    _mm_setcsr(control);
    for (int from = 0; from < t->rows; from += STRIP)
        if (!l.stored[from / STRIP]) finish_strip(&l, from, count);
}
