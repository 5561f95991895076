// Mass of chosen rows by key block: included by tiles.h.
//
// For each row and key block the sum of exponentials is kept, relative to the
// row's maximum so far, and that maximum; in the end they are scaled by the row's
// own lse. A maximum soon rises no more, and most blocks share one. A tile of keys
// serves the rows of all heads of a group before the next one's.
typedef struct {
    tile_rows tile;
    float top[TILE];          // of each row so far
    float *block;             // [blocks, TILE] what the sums are relative to
} massed_head;

static void add_mass(massed_head *a, int r, int64_t block, float *mass) {
    const tile_rows *t = &a->tile;
    int limit = limit_of(t, r);
    if (!limit) return;
    const float *score = score_row(t, r);
    float *top = &a->block[block * TILE + r];
    vf high = row_maximum(score, limit);
    if (vf_any_above(high, vf_set1(a->top[r]))) a->top[r] = vf_highest(high);
    if (*top != a->top[r]) {
        if (*top > -INFINITY) *mass *= exp2_scalar((*top - a->top[r]) * t->unit);
        *top = a->top[r];
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

static inline int64_t row_mass_floats(int64_t keys) { return ((keys + 15) / 16 + 1) * TILE; }

#if PIPELINED
#include "rowmass_overlapped.h"
#else
#define overlaps_row_mass(c) 0
#define row_mass_overlapped(c, count, scratch) ((void)0)
#endif

static void NAME(row_mass)(const trivium_row_mass *c, int32_t count, void *scratch) {
    if (overlaps_row_mass(c)) {
        row_mass_overlapped(c, count, scratch);
        return;
    }
    massed_head heads[TRIVIUM_GROUP_HEADS];
    const trivium_problem *p = c->head->problem;
    int64_t all = c->head->keys->key.rows, blocks = (all + c->block_size - 1) / c->block_size, offset = c->head->offset;
    for (int h = 0; h < count; h++) {
        massed_head *a = &heads[h];
        a->block = start_tile(&a->tile, c[h].head, (float *)scratch + h * (tile_floats(p) + row_mass_floats(all)));
        a->tile.score = heads[0].tile.score;
        a->tile.other = heads[0].tile.other;
        for (int64_t i = 0; i < c->rows; i++) {
            add_row(&a->tile, c[h].head, c->row[i]);
            memset(c[h].mass + c->place[i] * blocks, 0, sizeof(float) * blocks);
            a->top[i] = -INFINITY;
        }
        for (int64_t i = 0; i < blocks * TILE; i++) a->block[i] = -INFINITY;
    }
    int64_t last = last_visible(p, offset + c->row[c->rows - 1], all);
    BEGIN_PRODUCTS();
    for (int64_t k0 = first_visible(p, offset + c->row[0]) / PANEL * PANEL; k0 < last && !cancelled(p);) {
        int64_t block = k0 / c->block_size, end = tile_end(k0, min_i64(last, (block + 1) * c->block_size));
        need_keys(p, c->head->keys, k0 / TILE * TILE);
        int begin = 0; // passes that see no key yet are left out
        while (begin + PASS_ROWS < c->rows && last_visible(p, offset + c->row[begin + PASS_ROWS - 1], all) <= k0) begin += PASS_ROWS;
        for (int h = 0; h < count; h++) {
            tile_rows *t = &heads[h].tile;
            if (end < last) prefetch_keys(p, c->head->keys, end, TILE, h, count);
            for (int from = begin; from < t->rows; from += PASS_ROWS) {
                score_tile(t, from, from + PASS_ROWS < t->rows ? from + PASS_ROWS : t->rows, k0, (int)(end - k0));
                for (int r = t->from; r < t->to; r++) add_mass(&heads[h], r, block, &c[h].mass[c->place[r] * blocks + block]);
            }
        }
        k0 = end;
    }
    END_PRODUCTS();
    for (int h = 0; h < count; h++)
        for (int r = 0; r < c->rows; r++)
            c[h].lse[c->place[r]] = share_mass(c[h].mass + c->place[r] * blocks, heads[h].block + r, blocks, heads[h].top[r], heads[h].tile.unit);
}
