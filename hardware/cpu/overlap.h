// Exponentials of scores while the matrix units multiply the next chunk of keys: included by
// tiles.h for the kernels that define PIPELINED, whose strips, chunks and maxima that are
// seldom raised are those of pipeline.h. Scores of a chunk never leave the first-level cache.
typedef struct {
    tile_rows tile;
    const query_t *query;
    weight_t *kept;           // [rows, stride] the exponentials; NULL: they are not kept
    int64_t stride;
    float top[TILE];          // that sums are relative to
    float reference[TILE];    // what score*unit is to be added to
    _Alignas(64) float sum[2][TILE * LANES]; // of the block so far, and behind the next piece, in turn
    int turn[TILE / STRIP];   // which of the two a strip's sums are in
} overlapped_rows;

// A strip of rows and CHUNK keys.
typedef struct {
    overlapped_rows *rows;    // NULL: no piece
    int from;
    int hidden;               // some row does not see some of the keys
    int64_t k0, end;          // keys from `end` on are nobody's
    int64_t first;            // kept exponentials from this key on are relative to one maximum
    int begins;               // sums start anew
    float *top, *total;       // the last piece of its block says where maxima go, and sums; NULL: nowhere
} piece;

typedef struct {
    float *score[2];          // [STRIP, CHUNK] of the piece being scored and of that before
    piece of[2];              // and what they are
    int stages;
    unsigned control;
    const char *ask;          // memory that will be needed, of which each stage asks for some lines
    int64_t gap;              // bytes from the end of a row of it to the next
    int asks, line, lines, left; // lines of a stage; the next of a row; of a row; in all
} overlap;

static void start_overlap(overlap *o, float *score) {
    *o = (overlap){.score = {score, score + STRIP * CHUNK}, .control = _mm_getcsr()};
    _mm_setcsr(o->control | _MM_FLUSH_ZERO_ON); // as exp2_flushed wants it
}

// The piece that is to be described, and then multiplied by stage_sums or stage_kept.
static inline piece *next_piece(overlap *o) { return &o->of[o->stages % 2]; }

// Asks in so many stages for the keys of the chunk from n on, or for the rows that they will be packed from.
static void want_keys(overlap *o, const trivium_problem *p, const trivium_keys *k, int64_t n, int stages) {
    o->left = o->line = 0;
    if (n >= k->key.rows) return;
    o->ask = (const char *)key_panel(p, k, p->band->key, n);
    o->lines = o->left = (int)(padded_dim(p) * HALVES * TILE * 2 / LINE);
    if (packing_state(k->keys_state + n / TILE) == TRIVIUM_UNPACKED) {
        int64_t bytes = dtype_bytes(k->key.dtype);
        o->ask = (const char *)k->key.data + n * k->key.stride * bytes;
        o->lines = (int)(k->key.cols * bytes + LINE - 1) / LINE;
        o->gap = k->key.stride * bytes - o->lines * LINE;
        o->left = o->lines * (int)min_i64(TILE, k->key.rows - n);
    }
    o->asks = (o->left + stages - 1) / stages;
}

INLINE void ask_some(overlap *o) {
    for (int i = 0; i < o->asks && o->left > 0; i++, o->left--) {
        __builtin_prefetch(o->ask, 0, 2);
        o->ask += LINE;
        if (++o->line < o->lines) continue;
        o->line = 0;
        o->ask += o->gap;
    }
}

// Makes ready what has its rows, with a multiple of STRIP of them.
static void start_rows(overlapped_rows *a) {
    tile_rows *t = &a->tile;
    int rows = (int)round_up(t->rows, STRIP), variant = t->problem->band->query;
    a->query = query_variant(t, variant);
    memset(t->query + ((long)variant * TILE + t->rows) * t->query_stride, 0, sizeof(query_t) * (size_t)((rows - t->rows) * t->query_stride));
    memset(a->sum[0], 0, sizeof(float) * (size_t)(rows * LANES));
    memset(a->turn, 0, sizeof a->turn);
    for (int r = 0; r < rows; r++) {
        a->top[r] = -INFINITY;
        a->reference[r] = reference_for(-INFINITY, t->unit);
    }
}

// What is left to do of the exponentials of a piece.
typedef struct {
    const float *score, *reference, *before;
    float *sum;               // before: the sums without the piece
    weight_t *kept;
    int64_t stride;
    vf unit, most;            // the greatest of what rows have added to their sums
    int pairs, each;          // pairs of rows that are left, and how many of them follow a product
} taking;

static const _Alignas(64) float no_sums[STRIP * LANES];

static taking start_taking(const piece *b, const float *score) {
    overlapped_rows *a = b->rows;
    int *turn = &a->turn[b->from / STRIP];
    const float *before = b->begins ? no_sums : a->sum[*turn] + b->from * LANES;
    *turn ^= 1;
    return (taking){
        .score = score, .reference = a->reference + b->from, .unit = vf_set1(a->tile.unit), .most = vf_set1(0), .pairs = STRIP / 2,
        .before = before, .sum = a->sum[*turn] + b->from * LANES,
        .kept = a->kept ? a->kept + b->from * a->stride + b->k0 : NULL, .stride = a->stride,
    };
}

INLINE void take_row(taking *w, int r, const int keep) {
    vf reference = vf_set1(w->reference[r]);
    vf x = exp2_flushed(vf_fma(vf_load(w->score + r * CHUNK), w->unit, reference));
    vf y = exp2_flushed(vf_fma(vf_load(w->score + r * CHUNK + LANES), w->unit, reference));
    vf part = vf_add(x, y);
    w->most = greatest_sum(w->most, part);
    vf_store(w->sum + r * LANES, vf_add(vf_load(w->before + r * LANES), part));
    if (!keep) return;
    keep_weight(w->kept + r * w->stride, x);
    keep_weight(w->kept + r * w->stride + LANES, y);
}

INLINE void take_pair(taking *w, const int keep) {
    take_row(w, 0, keep);
    take_row(w, 1, keep);
    w->score += 2 * CHUNK;
    w->reference += 2;
    w->before += 2 * LANES;
    w->sum += 2 * LANES;
    if (keep) w->kept += 2 * w->stride;
    w->pairs--;
}

// Takes a piece again in which some score lies far above its row's maximum, and raises that.
static __attribute__((noinline)) void take_raised(const piece *b, const float *score, int keep) {
    overlapped_rows *a = b->rows;
    float unit = a->tile.unit;
    int turn = a->turn[b->from / STRIP];
    for (int r = 0; r < STRIP; r++) {
        int row = b->from + r;
        float high = vf_highest(row_maximum(score + r * CHUNK, CHUNK));
        if (!(high * unit + a->reference[row] > SLACK)) continue;
        vf shrink = vf_set1(a->top[row] > -INFINITY ? exp2_scalar((a->top[row] - high) * unit) : 1); // else all that there is is zero
        a->top[row] = high;
        a->reference[row] = reference_for(high, unit);
        vf reference = vf_set1(a->reference[row]), factor = vf_set1(unit);
        vf x = exp2_flushed(vf_fma(vf_load(score + r * CHUNK), factor, reference));
        vf y = exp2_flushed(vf_fma(vf_load(score + r * CHUNK + LANES), factor, reference));
        const float *before = b->begins ? no_sums : a->sum[turn ^ 1] + row * LANES;
        vf_store(a->sum[turn] + row * LANES, vf_fma(vf_load(before), shrink, vf_add(x, y)));
        if (!keep) continue;
        weight_t *kept = a->kept + row * a->stride;
        for (int64_t j = b->first; j < b->k0; j += LANES) keep_weight(kept + j, vf_mul(kept_weights(kept + j), shrink));
        keep_weight(kept + b->k0, x);
        keep_weight(kept + b->k0 + LANES, y);
    }
}

static void finish_piece(const piece *b) {
    const overlapped_rows *a = b->rows;
    const float *sum = a->sum[a->turn[b->from / STRIP]] + b->from * LANES;
    for (int r = 0; r < STRIP; r += LANES) {
        vf_store(b->top + r, vf_load(a->top + b->from + r));
        if (b->total) vf_store(b->total + r, sums_of_rows(sum + r * LANES));
    }
}

// The rows of a piece are taken a few after each product: with all registers that they write, the processor
// does not look far enough ahead to find the next product behind more of them.
INLINE void take_some(taking *w, const int keep) {
    for (int i = 0; i < w->each && w->pairs; i++) take_pair(w, keep);
}

// Adds to tiles 0 - 3 the product of a, 32 rows, and b, two panels, over 32 columns.
INLINE void multiply_and_take(const uint16_t *a, long a_stride, const uint16_t *b, long panel, taking *w, const int keep) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, a_stride);
    _tile_dpbf16ps(0, 4, 6);
    take_some(w, keep);
    _tile_loadd(7, b + panel, 64);
    _tile_dpbf16ps(1, 4, 7);
    take_some(w, keep);
    _tile_loadd(5, a + 16 * (a_stride / 2), a_stride);
    _tile_dpbf16ps(2, 5, 6);
    take_some(w, keep);
    _tile_dpbf16ps(3, 5, 7);
    take_some(w, keep);
}

// Multiplies the next piece, if it has rows, and takes the exponentials of that before.
INLINE void run_stage(overlap *o, const int keep) {
    const piece *n = &o->of[o->stages % 2], *b = &o->of[(o->stages + 1) % 2];
    float *score = o->score[o->stages % 2], *before = o->score[(o->stages + 1) % 2];
    if (b->hidden) hide_in_chunk(&b->rows->tile, b->from, b->k0, b->end, before);
    taking w = {0};
    if (b->rows) w = start_taking(b, before);
    MEMORY_BARRIER();
    if (n->rows) {
        const tile_rows *t = &n->rows->tile;
        const trivium_problem *p = t->problem;
        long depth = padded_dim(p), half = depth * PANEL, stride = t->query_stride, a_stride = stride * (long)sizeof(query_t);
        const uint16_t *query = (const uint16_t *)(n->rows->query + n->from * stride);
        const uint16_t *key = key_panel(p, t->keys, p->band->key, n->k0);
        int products = (HALVES == 1 ? 4 : 12) * (int)depth / DEPTH;
        w.each = (STRIP / 2 + products - 1) / products;
        zero_2_2();
        for (long k = 0; k < depth; k += DEPTH, query += DEPTH, key += DEPTH * PANEL) {
            multiply_and_take(query, a_stride, key, HALVES * half, &w, keep);
            if (HALVES == 1) continue;
            multiply_and_take(query, a_stride, key + half, HALVES * half, &w, keep);
            multiply_and_take(query + stride, a_stride, key, HALVES * half, &w, keep);
        }
        store_2_2(score, CHUNK * 4L);
    }
    while (w.pairs) take_pair(&w, keep);
    MEMORY_BARRIER();
    if (__builtin_expect(some_far_above(w.most), 0)) take_raised(b, before, keep);
    if (b->rows && b->top) finish_piece(b);
    ask_some(o);
    o->stages++;
}

static __attribute__((noinline)) void stage_sums(overlap *o) { run_stage(o, 0); }
static __attribute__((noinline)) void stage_kept(overlap *o) { run_stage(o, 1); }

static int overlaps(const trivium_problem *p) { return p->bands == 1 && !p->softcap; }
