// Representative rows: included by tiles.h.
//
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
