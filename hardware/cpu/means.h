// What strategies make of block means and probed rows, for every instruction set:
// included by sums.h.

// --- products of means ---

// Keys are turned, LANES at a time, so that products are added up without summing
// over a vector: a third of the time for 128 columns, on Zen 4.
enum { DOT_ROWS = 8, DOT_DEPTH = 256 };

// turned: [depth, LANES], of `have` keys.
static void turn_keys(float *turned, const float *b, int64_t have, int64_t dim, int64_t depth) {
    int64_t k = 0;
    for (; have == LANES && k + LANES <= depth; k += LANES) {
        vf block[LANES];
        for (int r = 0; r < LANES; r++) block[r] = vf_load(b + r * dim + k);
        vf_transpose(block);
        for (int r = 0; r < LANES; r++) vf_store(turned + (k + r) * LANES, block[r]);
    }
    for (; k < depth; k++)
        for (int64_t r = 0; r < LANES; r++) turned[k * LANES + r] = r < have ? b[r * dim + k] : 0;
}

INLINE void dot_rows(const int N, const float *a, int64_t dim, const float *turned, int64_t depth, int64_t have, int add, float *product, int64_t keys) {
    vf sum[DOT_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) sum[r] = vf_set1(0);
    for (int64_t k = 0; k < depth; k++) {
        vf key = vf_load(turned + k * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) sum[r] = vf_fma(vf_set1(a[r * dim + k]), key, sum[r]);
    }
    float lanes[LANES];
    for (int r = 0; r < N; r++, product += keys) {
        vf_store(lanes, sum[r]);
        for (int64_t j = 0; j < have; j++) product[j] = (add ? product[j] : 0) + lanes[j];
    }
}

static void NAME(dots)(const float *a, int64_t rows, const float *b, int64_t keys, int64_t dim, float *product) {
    float turned[DOT_DEPTH * LANES];
    for (int64_t j = 0; j < keys; j += LANES)
        for (int64_t k = 0; k < dim; k += DOT_DEPTH) {
            int64_t have = min_i64(LANES, keys - j), depth = min_i64(DOT_DEPTH, dim - k), i = 0;
            turn_keys(turned, b + j * dim + k, have, dim, depth);
            for (; i + DOT_ROWS <= rows; i += DOT_ROWS) dot_rows(DOT_ROWS, a + i * dim + k, dim, turned, depth, have, k > 0, product + i * keys + j, keys);
            for (; i < rows; i++) dot_rows(1, a + i * dim + k, dim, turned, depth, have, k > 0, product + i * keys + j, keys);
        }
}

// --- levels of tiles ---

// The level of a number is looked up by its upper bits, and then counted on, without
// branches, which nothing could foresee.
enum { CELLS = 1024 };
typedef struct {
    float threshold[256];     // then NaN
    int levels, shift, most;  // thresholds of a cell
    uint32_t first, last;     // the cells of the first threshold and the last
    int32_t start[CELLS];     // the level of the smallest number of a cell
} level_table;

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void start_levels(level_table *t, const trivium_levels *c) {
    for (int i = 0; i < 256; i++) t->threshold[i] = i < c->levels ? c->threshold[i] : NAN;
    uint32_t low = bits_of(c->threshold[0]), high = bits_of(c->threshold[c->levels - 1]);
    for (t->shift = 19; (high >> t->shift) - (low >> t->shift) >= CELLS; t->shift++) {}
    t->first = low >> t->shift;
    t->last = high >> t->shift;
    t->most = 0;
    uint32_t cell = t->first;
    for (int level = 0, own = 0; level < c->levels; level++) {
        uint32_t bits = bits_of(c->threshold[level]);
        own = level && bits >> t->shift == bits_of(c->threshold[level - 1]) >> t->shift ? own + 1 : 1;
        t->most = own > t->most ? own : t->most;
        // Cells that begin above `level` thresholds, but not above the next.
        for (; cell <= t->last && cell << t->shift <= bits; cell++) t->start[cell - t->first] = level;
    }
}

// Written so that compilers make gathers of it where there are any.
INLINE void find_levels(const level_table *t, const int most, const float *score, int64_t n, uint8_t *level) {
    const int32_t *start = t->start, first = (int32_t)t->first, last = (int32_t)t->last;
    const float *threshold = t->threshold;
    const int shift = t->shift;
    const float lowest = threshold[0];
    for (int64_t l = 0; l < n; l++) {
        float x = score[l] >= lowest ? score[l] : 0; // nor is NaN
        int32_t bits, cell;
        memcpy(&bits, &x, sizeof bits);
        cell = bits >> shift;
        cell = cell < last ? cell : last;
        cell = cell > first ? cell - first : 0;
        int32_t at = start[cell];
        for (int i = 0; i < most; i++) at += x >= threshold[at];
        level[l] = (uint8_t)at;
    }
}

// What is known of up to SPAN tiles of a row, by part.
enum { SPAN = TRIVIUM_LEVEL_COLUMNS, PARTS = TRIVIUM_LEVEL_PARTS };
typedef struct {
    float own[PARTS][SPAN], around[PARTS][SPAN], weight[PARTS][SPAN];
    float count[PARTS];       // probes of the row
    float probability[SPAN], score[SPAN];
} row_tiles;

// Adds weight to the columns [first, last).
INLINE void add_weight(float *to, float weight, int64_t first, int64_t last, int64_t n) {
    static const float number[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf zero = vf_set1(0), column = vf_load(number), from = vf_set1((float)first), end = vf_set1((float)last);
    for (int64_t l = 0; l < n; l += LANES) {
        vf w = vf_select_below(column, from, zero, vf_select_below(column, end, vf_set1(weight), zero));
        vf_store(to + l, vf_add(vf_load(to + l), w));
        column = vf_add(column, vf_set1(LANES));
    }
}

static void add_probes(row_tiles *t, const trivium_levels *c, int64_t i, int64_t from, int64_t to, int64_t j, int64_t n) {
    float whole[PARTS] = {0}; // weight of the probes that see all columns
    memset(t->count, 0, sizeof t->count);
    for (int p = 0; p < c->parts; p++)
        for (int64_t l = 0; l < n; l += LANES) {
            vf_store(t->own[p] + l, vf_set1(0));
            vf_store(t->around[p] + l, vf_set1(0));
            vf_store(t->weight[p] + l, vf_set1(0));
        }
    for (int64_t k = from; k < to; k++) {
        int64_t r = c->row[k], part = c->part[k];
        const float *mass = c->mass + k * c->columns + j;
        float weight = c->weight[c->reach + r - i];
        float *around = t->around[part], *own = t->own[part];
        for (int64_t l = 0; l < n; l += LANES) vf_store(around + l, vf_fma(vf_set1(weight), vf_load(mass + l), vf_load(around + l)));
        int64_t first = max_i64(c->low[r] - j, 0), last = min_i64(c->high[r] - j, n);
        if (first == 0 && last == n) whole[part] += weight;
        else if (first < last) add_weight(t->weight[part], weight, first, last, n);
        if (r != i) continue;
        t->count[part]++;
        for (int64_t l = 0; l < n; l += LANES) vf_store(own + l, vf_add(vf_load(mass + l), vf_load(own + l)));
    }
    for (int p = 0; p < c->parts; p++)
        for (int64_t l = 0; l < n; l += LANES) vf_store(t->weight[p] + l, vf_add(vf_load(t->weight[p] + l), vf_set1(whole[p])));
}

// The scores of n tiles by the probes of all parts but one.
static void score_tiles(row_tiles *t, int parts, int left_out, int64_t n) {
    float count = 0;
    for (int p = 0; p < parts; p++) count += p == left_out ? 0 : t->count[p];
    vf zero = vf_set1(0), each = vf_set1(count > 0 ? 1 / count : 0);
    for (int64_t l = 0; l < n; l += LANES) {
        vf own = zero, around = zero, weight = zero;
        for (int p = 0; p < parts; p++) {
            if (p == left_out) continue;
            own = vf_add(own, vf_load(t->own[p] + l));
            around = vf_add(around, vf_load(t->around[p] + l));
            weight = vf_add(weight, vf_load(t->weight[p] + l));
        }
        around = vf_select_below(zero, weight, vf_div(around, weight), zero);
        own = count > 0 ? vf_mul(own, each) : around;
        vf score = vf_fma(vf_set1(0.5f), vf_load(t->probability + l), vf_add(own, around));
        vf_store(t->score + l, vf_mul(score, vf_set1(1 / 2.5f)));
    }
}

// exp2((similarity - top)*log2(e)), of n columns, then zeros; their sum.
static float row_exponentials(float *to, const float *similarity, int64_t n, float top) {
    vf unit = vf_set1(LOG2_E), reference = vf_set1(-top * LOG2_E), sum = vf_set1(0);
    memcpy(to, similarity, sizeof(float) * n);
    for (int64_t l = n; l < round_up(n, LANES); l++) to[l] = -INFINITY;
    for (int64_t l = 0; l < n; l += LANES) {
        vf e = exp2_below_one(vf_fma(vf_load(to + l), unit, reference));
        vf_store(to + l, e);
        sum = vf_add(sum, e);
    }
    return vf_total(sum);
}

static void NAME(tile_levels)(const trivium_levels *c) {
    level_table table;
    row_tiles t;
    start_levels(&table, c);
    int choices = trivium_choices(c);
    for (int64_t i = 0, from = 0, to = 0; i < c->rows; i++) {
        while (from < c->probes && c->row[from] < i - c->reach) from++;
        while (to < c->probes && c->row[to] <= i + c->reach) to++;
        const float *similarity = c->similarity + i * c->columns;
        float top = -INFINITY, sum = 0;
        for (int64_t j = c->low[i]; j < c->high[i]; j++) top = similarity[j] > top ? similarity[j] : top;
        for (int64_t j = c->low[i]; j < c->high[i]; j += SPAN) sum += row_exponentials(t.probability, similarity + j, min_i64(SPAN, c->high[i] - j), top);
        for (int64_t j = c->low[i]; j < c->high[i]; j += SPAN) {
            int64_t n = min_i64(SPAN, c->high[i] - j);
            row_exponentials(t.probability, similarity + j, n, top);
            for (int64_t l = 0; l < n; l += LANES) vf_store(t.probability + l, vf_div(vf_load(t.probability + l), vf_set1(sum)));
            if (c->parts) add_probes(&t, c, i, from, to, j, n);
            for (int choice = 0; choice < choices; choice++) {
                if (c->parts) score_tiles(&t, c->parts, c->parts > 1 ? choice : -1, n);
                const float *score = c->parts ? t.score : t.probability;
                uint8_t *level = c->level + (choice * c->rows + i) * c->columns + j;
                if (table.most == 1) find_levels(&table, 1, score, n, level);
                else find_levels(&table, table.most, score, n, level);
            }
        }
    }
}
