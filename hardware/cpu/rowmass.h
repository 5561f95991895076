// Mass of chosen rows by key block: included by tiles.h.
//
// For each row and key block the sum of exponentials is kept, relative to the
// row's maximum so far, and that maximum; in the end they are scaled by the row's
// own lse. A maximum soon rises no more, and most blocks share one.
typedef struct {
    float row[TILE], *block;  // maxima: of each row so far; [blocks, TILE] those that the sums are relative to
} mass_tops;

static void add_mass(const tile_rows *t, int r, mass_tops *tops, int64_t block, float *mass) {
    int limit = limit_of(t, r);
    if (!limit) return;
    const float *score = score_row(t, r);
    float *top = &tops->block[block * TILE + r];
    vf high = row_maximum(score, limit);
    if (vf_any_above(high, vf_set1(tops->row[r]))) tops->row[r] = vf_highest(high);
    if (*top != tops->row[r]) {
        if (*top > -INFINITY) *mass *= exp2_scalar((*top - tops->row[r]) * t->unit);
        *top = tops->row[r];
    }
    *mass += vf_total(sum_exponentials(score, limit, *top, t->unit));
}

// Makes shares of the sums of a row, and gives its lse.
static float share_mass(float *mass, const float *top, int64_t blocks, float highest, float unit) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++) {
        if (top[b * TILE] != highest) mass[b] *= exp2_scalar((top[b * TILE] - highest) * unit);
        sum += mass[b];
    }
    float share = sum > 0 ? (float)(1 / sum) : 1;
    for (int64_t b = 0; b < blocks; b++) mass[b] *= share;
    return highest == -INFINITY ? -INFINITY : (float)((highest * unit + log2(sum)) * LOG_2);
}

static void NAME(row_mass)(const trivium_row_mass *c, void *scratch) {
    tile_rows t;
    mass_tops tops;
    const trivium_problem *p = c->head->problem;
    int64_t all = c->head->keys->key.rows, blocks = (all + c->block_size - 1) / c->block_size;
    tops.block = start_tile(&t, c->head, scratch);
    for (int64_t i = 0; i < c->rows; i++) {
        add_row(&t, c->head, c->row[i]);
        memset(c->mass + c->place[i] * blocks, 0, sizeof(float) * blocks);
        tops.row[i] = -INFINITY;
    }
    for (int64_t i = 0; i < blocks * TILE; i++) tops.block[i] = -INFINITY;
    int64_t last = last_visible(p, c->head->offset + c->row[c->rows - 1], all);
    int passes = (t.rows + PASS_ROWS - 1) / PASS_ROWS;
    BEGIN_PRODUCTS();
    for (int64_t k0 = first_visible(p, c->head->offset + c->row[0]) / PANEL * PANEL; k0 < last && !cancelled(p);) {
        int64_t block = k0 / c->block_size, end = tile_end(k0, min_i64(last, (block + 1) * c->block_size));
        for (int pass = 0; pass < passes; pass++) {
            int from = pass * PASS_ROWS;
            if (end < last) prefetch_keys(p, c->head->keys, end, TILE, pass, passes);
            score_tile(&t, from, from + PASS_ROWS < t.rows ? from + PASS_ROWS : t.rows, k0, (int)(end - k0));
            for (int r = t.from; r < t.to; r++) add_mass(&t, r, &tops, block, &c->mass[c->place[r] * blocks + block]);
        }
        k0 = end;
    }
    END_PRODUCTS();
    for (int r = 0; r < t.rows; r++)
        c->lse[c->place[r]] = share_mass(c->mass + c->place[r] * blocks, tops.block + r, blocks, tops.row[r], t.unit);
}
