// Mass of chosen rows where products and exponentials overlap: included by rowmass.h. Sums and maxima
// of a key block are those of 16 rows side by side.
typedef struct {
    overlapped_rows rows;
    float *sum, *top;         // [blocks, TILE] of the exponentials of a block, and the maxima that they are relative to
    int64_t first[TILE / STRIP], last[TILE / STRIP]; // blocks that the strips have met
} overlapped_head;

static int overlaps_row_mass(const trivium_row_mass *c) {
    return overlaps(c->head->problem) && c->block_size % CHUNK == 0;
}

// Keys are taken so many at a time: 16 KiB of them, and the queries of a strip, stay in the first-level cache.
enum { NEAR = 2 * CHUNK };

// Keys [k0, end), at most NEAR, against the rows of a head.
static void mass_of_tile(overlapped_head *a, overlap *o, int64_t k0, int64_t end, int64_t block, int64_t block_end) {
    const tile_rows *t = &a->rows.tile;
    const trivium_problem *p = t->problem;
    int64_t all = t->keys->key.rows;
    int strips = (t->rows + STRIP - 1) / STRIP;
    for (int s = 0; s < strips; s++) {
        int from = s * STRIP, to = from + STRIP < t->rows ? from + STRIP : t->rows;
        int64_t limit = last_visible(p, t->position[to - 1], all), seen = min_i64(end, limit);
        if (seen <= k0 || first_visible(p, t->position[from]) >= end) continue;
        int64_t first = a->last[s] == block + 1 ? -1 : k0; // where the strip begins the block
        a->first[s] = min_i64(a->first[s], block);
        a->last[s] = block + 1;
        int hidden = end > last_visible(p, t->position[from], all) || k0 < first_visible(p, t->position[to - 1]) || (end - k0) % CHUNK;
        for (int64_t at = k0; at < seen; at += CHUNK) {
            piece *n = next_piece(o);
            n->rows = &a->rows;
            n->from = from;
            n->hidden = hidden;
            n->k0 = at;
            n->end = end;
            n->begins = at == first;
            n->top = n->total = NULL;
            if (at + CHUNK >= seen && seen == min_i64(limit, block_end)) {
                n->top = a->top + block * TILE + from;
                n->total = a->sum + block * TILE + from;
            }
            stage_sums(o);
        }
    }
}

// Writes the shares of the blocks of LANES rows, and their lse.
static void share_blocks(const overlapped_head *a, const trivium_row_mass *c, int from, int64_t blocks) {
    const overlapped_rows *rows = &a->rows;
    float unit = rows->tile.unit;
    int64_t first = a->first[from / STRIP], last = a->last[from / STRIP];
    vf highest = vf_load(rows->top + from);
    __m512d low = _mm512_setzero_pd(), high = low;
    for (int64_t b = first; b < last; b++) {
        float *sum = a->sum + b * TILE + from;
        vf top = vf_load(a->top + b * TILE + from), x = vf_load(sum);
        __mmask16 risen = _mm512_cmp_ps_mask(top, highest, _CMP_LT_OQ);
        if (risen) vf_store(sum, x = _mm512_mask_mul_ps(x, risen, x, exp2_below_one(vf_mul(vf_sub(top, highest), vf_set1(unit)))));
        low = _mm512_add_pd(low, vf_low(x));
        high = _mm512_add_pd(high, vf_high(x));
    }
    double total[LANES];
    _mm512_storeu_pd(total, low);
    _mm512_storeu_pd(total + LANES / 2, high);
    float share[LANES];
    for (int r = 0; r < LANES; r++) share[r] = total[r] > 0 ? (float)(1 / total[r]) : 1;
    for (int64_t b = 0; b < blocks; b += LANES) {
        vf x[LANES];
        for (int64_t i = 0; i < LANES; i++)
            x[i] = b + i < first || b + i >= last ? vf_set1(0) : vf_mul(vf_load(a->sum + (b + i) * TILE + from), vf_load(share));
        vf_transpose(x);
        __mmask16 some = blocks - b < LANES ? (__mmask16)((1u << (blocks - b)) - 1) : (__mmask16)~0;
        for (int r = 0; r < LANES && from + r < c->rows; r++) _mm512_mask_storeu_ps(c->mass + c->place[from + r] * blocks + b, some, x[r]);
    }
    for (int r = 0; r < LANES && from + r < c->rows; r++) {
        float top = rows->top[from + r];
        c->lse[c->place[from + r]] = top == -INFINITY ? -INFINITY : (float)((top * unit + log2(total[r])) * LOG_2);
    }
}

static void row_mass_overlapped(const trivium_row_mass *c, int32_t count, void *scratch) {
    overlapped_head heads[TRIVIUM_GROUP_HEADS];
    overlap o;
    const trivium_problem *p = c->head->problem;
    const trivium_keys *keys = c->head->keys;
    int64_t all = keys->key.rows, blocks = (all + c->block_size - 1) / c->block_size, offset = c->head->offset;
    for (int h = 0; h < count; h++) {
        overlapped_head *a = &heads[h];
        a->sum = start_tile(&a->rows.tile, c[h].head, (float *)scratch + h * (tile_floats(p) + row_mass_floats(all)));
        a->top = a->sum + blocks * TILE;
        a->rows.kept = NULL;
        for (int64_t i = 0; i < c->rows; i++) add_row(&a->rows.tile, c[h].head, c->row[i]);
        start_rows(&a->rows);
        for (int s = 0; s < TILE / STRIP; s++) {
            a->first[s] = blocks;
            a->last[s] = 0;
        }
    }
    int64_t last = last_visible(p, offset + c->row[c->rows - 1], all);
    BEGIN_PRODUCTS();
    start_overlap(&o, heads[0].rows.tile.score);
    int64_t start = first_visible(p, offset + c->row[0]) / CHUNK * CHUNK;
    for (int64_t k0 = start; k0 < last && !cancelled(p);) {
        int64_t block = k0 / c->block_size, end = min_i64((k0 / NEAR + 1) * NEAR, min_i64(last, (block + 1) * c->block_size));
        if (k0 % TILE == 0 || k0 == start) {
            need_keys(p, keys, k0 / TILE * TILE);
            want_keys(&o, p, keys, (k0 / TILE + 1) * TILE, count * (int)(round_up(c->rows, STRIP) / STRIP) * CHUNKS);
        }
        for (int h = 0; h < count; h++) mass_of_tile(&heads[h], &o, k0, end, block, (block + 1) * c->block_size);
        k0 = end;
    }
    next_piece(&o)->rows = NULL;
    stage_sums(&o);
    _mm_setcsr(o.control);
    END_PRODUCTS();
    for (int h = 0; h < count && !cancelled(p); h++)
        for (int from = 0; from < c->rows; from += LANES) share_blocks(&heads[h], &c[h], from, blocks);
}
