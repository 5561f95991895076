// Scores of whole blocks, for strategies that rank them: included by tiles.h.

// Takes the queries of every part, as variants of the rows: [parts, TILE, query_stride].
static void load_squares(tile_rows *t, const trivium_square_mass *c) {
    _Alignas(64) float x[256] = {0};
    float scale = query_scale(t->problem);
    for (int part = 0; part < c->parts; part++) {
        const trivium_head *h = &c->part[part];
        query_t *query = t->query + (int64_t)part * TILE * t->query_stride;
        for (int r = 0; r < t->rows; r++, query += t->query_stride) {
            int64_t row = t->position[r] - h->offset;
            if (row < 0 || row >= h->query.rows) {
                memset(query, 0, sizeof(query_t) * t->query_stride);
                continue;
            }
            if (scale == 1 && copy_query(query, &h->query, row, t->query_stride)) continue;
            load_floats(x, &h->query, row);
            store_query(query, x, t->query_stride, scale);
        }
    }
}

// The scores of all rows with keys [k0, k0+keys): the sum over parts. A part's
// keys serve all rows before the next part's, which are asked for meanwhile.
static void score_squares(tile_rows *t, const trivium_square_mass *c, int64_t k0, int keys) {
    set_limits(t, k0, keys);
    for (int part = 0; part < c->parts; part++) {
        const trivium_keys *k = c->part[part].keys, *next = c->part[(part + 1) % c->parts].keys;
        const query_t *query = t->query + (int64_t)part * TILE * t->query_stride;
        int64_t ahead = part + 1 < c->parts ? k0 : k0 + keys;
        for (int from = 0; from < t->rows && k0 < k->key.rows; from += PASS_ROWS) {
            if (ahead < next->key.rows) prefetch_keys(t->problem, next, ahead, TILE, from / PASS_ROWS, (t->rows + PASS_ROWS - 1) / PASS_ROWS);
            multiply_scores(query + (long)from * t->query_stride, t->query_stride, t->rows - from < PASS_ROWS ? t->rows - from : PASS_ROWS,
                            t->limit + from / ROW_STEP, t->problem, k, 0, k0, keys, t->score + from * TILE, part > 0);
        }
    }
    hide_some_keys(t, k0, keys);
}

// Adds n numbers up, in four sums that do not wait for each other.
static inline float sum_floats(const float *x, int n) {
    float part[4] = {0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) part[j] += x[i + j];
    for (; i < n; i++) part[0] += x[i];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

static void scale_floats(float *x, int64_t n, float by) {
    for (int64_t i = 0; i < n; i++) x[i] *= by;
}

// Sums of one row by key block, relative to the largest score so far; what was
// summed before is scaled when that grows, which it soon does no more.
static void NAME(square_mass)(const trivium_square_mass *c, void *scratch) {
    tile_rows t;
    const trivium_problem *p = c->part->problem;
    int64_t keys = c->part->keys->key.rows, blocks = (keys + c->block_size - 1) / c->block_size;
    float *sums = start_tile(&t, c->part, scratch); // [rows, blocks]
    float top[TILE], total[TILE] = {0};
    for (; t.rows < c->rows; t.rows++) {
        t.position[t.rows] = c->row + t.rows;
        top[t.rows] = -INFINITY;
    }
    memset(sums, 0, sizeof(float) * t.rows * blocks);
    t.from = 0;
    t.to = t.rows;
    load_squares(&t, c);
    int64_t last = last_visible(p, c->row + c->rows - 1, keys);
    BEGIN_PRODUCTS();
    for (int64_t k0 = first_visible(p, c->row) / PANEL * PANEL; k0 < last && !cancelled(p);) {
        int n = (int)(tile_end(k0, last) - k0);
        score_squares(&t, c, k0, n);
        for (int r = 0; r < t.rows; r++) {
            int limit = limit_of(&t, r);
            if (!limit) continue;
            float *score = score_row(&t, r), *sum = sums + r * blocks, next = fmaxf(top[r], vf_highest(row_maximum(score, limit)));
            if (next > top[r] && top[r] > -INFINITY) {
                float shrink = exp2_scalar((top[r] - next) * t.unit);
                scale_floats(sum, k0 / c->block_size + 1, shrink);
                total[r] *= shrink;
            }
            top[r] = next;
            total[r] += vf_total(exponentials(score, limit, next, t.unit));
            for (int j = 0; j < n && j < limit;) {
                int64_t block = (k0 + j) / c->block_size;
                int end = (int)min_i64(min_i64(n, limit), (block + 1) * c->block_size - k0);
                sum[block] += sum_floats(score + j, end - j);
                j = end;
            }
        }
        k0 += n;
    }
    END_PRODUCTS();
    for (int r = 0; r < t.rows; r++) {
        float *mass = c->mass + ((c->row + r) / c->block_size - c->row / c->block_size) * blocks;
        for (int64_t b = 0; b < blocks && total[r] > 0; b++) mass[b] += sums[r * blocks + b] / total[r];
    }
}

// Column sums relative to the largest score of all rows so far.
static void NAME(column_score)(const trivium_column_score *c, void *scratch) {
    tile_rows t;
    const trivium_problem *p = c->head->problem;
    float *sums = start_tile(&t, c->head, scratch), top = -INFINITY; // [keys from begin on]
    int64_t begin = c->first / PANEL * PANEL, row = c->row;
    memset(sums, 0, sizeof(float) * round_up(c->last - begin, TILE));
    BEGIN_PRODUCTS();
    while (row < c->row + c->rows && !cancelled(p)) {
        memset(t.ready, 0, p->query_variants);
        for (t.rows = 0; t.rows < TILE && row < c->row + c->rows; row++) add_row(&t, c->head, row);
        for (int64_t k0 = begin; k0 < c->last;) {
            int64_t end = tile_end(k0, c->last);
            score_tile(&t, 0, t.rows, k0, (int)(end - k0));
            vf high = vf_set1(-INFINITY);
            for (int r = 0; r < t.rows; r++) {
                for (int64_t j = 0; j < c->first - k0; j++) score_row(&t, r)[j] = -INFINITY;
                if (limit_of(&t, r)) high = vf_max(high, row_maximum(score_row(&t, r), limit_of(&t, r)));
            }
            float next = fmaxf(top, vf_highest(high));
            if (next > top && top > -INFINITY) scale_floats(sums, c->last - begin, exp2_scalar((top - next) * t.unit));
            top = next;
            for (int r = 0; r < t.rows; r++) {
                exponentials(score_row(&t, r), limit_of(&t, r), top, t.unit);
                float *sum = sums + (k0 - begin);
                for (int j = 0; j < limit_of(&t, r); j += LANES) vf_store(sum + j, vf_add(vf_load(sum + j), vf_load(score_row(&t, r) + j)));
            }
            k0 = end;
        }
    }
    END_PRODUCTS();
    memcpy(c->score, sums + (c->first - begin), sizeof(float) * (c->last - c->first));
}
