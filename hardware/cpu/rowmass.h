// Mass of chosen rows by key block: included by tiles.h.
//
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
