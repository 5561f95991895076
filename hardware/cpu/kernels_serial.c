// The oracle: one row at a time, float64 everywhere but in what is stored.
// Allows every shape of the contract. Error: that of float32 inputs, cosines
// and results; each score, sum and output is float64 within.
#include "numbers.h"
#include "packing.h"
#include "visible.h"

static const float *rotation_row(const trivium_rotation *r, int64_t row) { return r->table ? r->table + row * r->step : NULL; }

// x: [dim] row of m, rotated; where is NULL for no rotation.
static void load_row(double *x, const trivium_problem *p, const trivium_matrix *m, int64_t row, const float *rotation) {
    for (int i = 0; i < m->cols; i++) x[i] = load_number(m->data, m->dtype, row * m->stride + i);
    if (!rotation) return;
    for (int i = 0; i < p->half; i++) {
        double c = rotation[2 * i], s = rotation[2 * i + 1];
        double *a = p->interleaved ? &x[2 * i] : &x[i], *b = p->interleaved ? &x[2 * i + 1] : &x[i + p->half];
        double u = *a, v = *b;
        *a = u * c - v * s;
        *b = u * s + v * c;
    }
}

// Packed: float32 keys [key_variants, rows, key_dim], then values [rows, value_dim].
static size_t pack_bytes_serial(const trivium_problem *p, int64_t rows) {
    return sizeof(float) * (size_t)rows * ((size_t)p->key_variants * p->key_dim + p->value_dim);
}
static const float *packed_key(const trivium_problem *p, const trivium_keys *k, int variant, int64_t n) {
    return (const float *)k->packed + (variant * k->key.rows + n) * p->key_dim;
}
static const float *packed_value(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    return packed_key(p, k, p->key_variants, 0) + n * p->value_dim;
}

static void to_floats(float *to, const double *x, int n) {
    for (int i = 0; i < n; i++) to[i] = (float)x[i];
}

static void make_key(float *to, const trivium_problem *p, const trivium_keys *k, int variant, int64_t n) {
    double x[256];
    load_row(x, p, &k->key, n, rotation_row(&k->rotation[variant], n));
    to_floats(to, x, p->key_dim);
}
static void make_value(float *to, const trivium_problem *p, const trivium_keys *k, int64_t n) {
    double x[256];
    load_row(x, p, &k->value, n, NULL);
    to_floats(to, x, p->value_dim);
}

// The packed row, or else one made in room.
static const float *key_row(const trivium_problem *p, const trivium_keys *k, int variant, int64_t n, float *room) {
    if (k->packed) return packed_key(p, k, variant, n);
    make_key(room, p, k, variant, n);
    return room;
}
static const float *value_row(const trivium_problem *p, const trivium_keys *k, int64_t n, float *room) {
    if (k->packed) return packed_value(p, k, n);
    make_value(room, p, k, n);
    return room;
}

static void pack_serial(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    for (int64_t n = first, next; n < first + rows && !cancelled(p); n = next) {
        next = min_i64(n + TRIVIUM_PACK_ROWS, first + rows);
        uint32_t *state = k->keys_state + n / TRIVIUM_PACK_ROWS;
        if (!packing_begins(state)) continue;
        for (int64_t i = n; i < next; i++)
            for (int v = 0; v < p->key_variants; v++) make_key((float *)packed_key(p, k, v, i), p, k, v, i);
        packing_done(state, TRIVIUM_PACKED);
    }
}

// Sees to it that all keys are packed.
static void need_keys(const trivium_problem *p, const trivium_keys *k) {
    pack_serial(p, k, 0, k->key.rows);
    for (int64_t n = 0; n < k->key.rows; n += TRIVIUM_PACK_ROWS) await_packing(k->keys_state + n / TRIVIUM_PACK_ROWS);
}

// The same for keys and values, if there is room for them.
static void pack_head(const trivium_problem *p, const trivium_keys *k) {
    if (!k->packed) return;
    need_keys(p, k);
    for (int64_t n = 0; n < k->value.rows; n += TRIVIUM_PACK_ROWS) {
        uint32_t *state = k->values_state + n / TRIVIUM_PACK_ROWS;
        if (packing_begins(state)) {
            for (int64_t i = n; i < min_i64(n + TRIVIUM_PACK_ROWS, k->value.rows); i++) make_value((float *)packed_value(p, k, i), p, k, i);
            packing_done(state, TRIVIUM_PACKED);
        }
    }
    for (int64_t n = 0; n < k->value.rows; n += TRIVIUM_PACK_ROWS) await_packing(k->values_state + n / TRIVIUM_PACK_ROWS);
}

// Scratch: rotated query [query_variants, key_dim], scores [keys], their keys [keys].
typedef struct {
    double *query, *score;
    int64_t *key;
    int64_t count;
} scored_row;

static scored_row scored_row_in(void *scratch, const trivium_problem *p, int64_t keys) {
    double *at = scratch;
    return (scored_row){at, at + p->query_variants * p->key_dim, (int64_t *)(at + p->query_variants * p->key_dim + keys), 0};
}
static size_t scratch_bytes_serial(const trivium_problem *p, int64_t keys) {
    return sizeof(double) * ((size_t)p->query_variants * p->key_dim + 2 * (size_t)keys);
}

static double score(const trivium_head *h, const scored_row *s, int64_t m, int64_t n) {
    const trivium_problem *p = h->problem;
    const trivium_band *b = p->band;
    while (b + 1 < p->band + p->bands && !in_band(b, m, n)) b++;
    const double *q = s->query + b->query * p->key_dim;
    float row[256];
    const float *k = key_row(p, h->keys, b->key, n, row);
    double sum = 0;
    for (int i = 0; i < p->key_dim; i++) sum += q[i] * k[i];
    sum *= p->scale;
    return p->softcap ? p->softcap * tanh(sum / p->softcap) : sum;
}

static void score_keys(const trivium_head *h, scored_row *s, int64_t row, int64_t first, int64_t last) {
    const trivium_problem *p = h->problem;
    int64_t m = h->offset + row, rows = h->keys->key.rows;
    first = max_i64(first, first_visible(p, m));
    last = min_i64(last, last_visible(p, m, rows));
    for (int64_t n = first; n < last; n++) {
        s->key[s->count] = n;
        s->score[s->count++] = score(h, s, m, n);
    }
}

static void start_row(const trivium_head *h, scored_row *s, int64_t row) {
    const trivium_problem *p = h->problem;
    s->count = 0;
    for (int v = 0; v < p->query_variants; v++)
        load_row(s->query + v * p->key_dim, p, &h->query, row, rotation_row(&h->rotation[v], row));
}

static double log_sum_exp(const scored_row *s) {
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < s->count; i++) top = fmax(top, s->score[i]);
    for (int64_t i = 0; i < s->count; i++) sum += exp(s->score[i] - top);
    return s->count ? top + log(sum) : -INFINITY;
}

static void attend_row(const trivium_attend *a, scored_row *s, int64_t row) {
    const trivium_head *h = a->head;
    const trivium_problem *p = h->problem;
    start_row(h, s, row);
    if (!a->block) score_keys(h, s, row, a->first, a->last);
    else for (int64_t i = 0; i < a->blocks; i++)
        score_keys(h, s, row, a->block[i] * a->block_size, (a->block[i] + 1) * a->block_size);

    double lse = log_sum_exp(s), out[256] = {0};
    if (s->count && !a->partial && a->sink > -INFINITY) {
        double top = fmax(lse, a->sink);
        lse = top + log(exp(lse - top) + exp(a->sink - top));
    }
    for (int64_t i = 0; i < s->count; i++) {
        double weight = exp(s->score[i] - lse);
        float row[256];
        const float *v = value_row(p, h->keys, s->key[i], row);
        for (int j = 0; j < p->value_dim; j++) out[j] += weight * v[j];
    }
    if (a->partial) {
        float *to = a->partial + (row - a->row) * (p->value_dim + 1);
        for (int j = 0; j < p->value_dim; j++) to[j] = (float)out[j];
        to[p->value_dim] = (float)lse;
        return;
    }
    for (int j = 0; j < p->value_dim; j++) store_number(a->output.data, a->output.dtype, row * a->output.stride + j, out[j]);
    if (a->lse) a->lse[row] = (float)lse;
}

static void attend_serial(const trivium_attend *a, int32_t count, void *scratch) {
    scored_row s = scored_row_in(scratch, a->head->problem, a->head->keys->key.rows);
    pack_head(a->head->problem, a->head->keys);
    for (; count > 0; count--, a++)
        for (int64_t r = a->row; r < a->row + a->rows && !cancelled(a->head->problem); r++) attend_row(a, &s, r);
}

static void representative_serial(const trivium_representative *r, void *scratch) {
    const trivium_head *h = r->head;
    int64_t keys = h->keys->key.rows;
    scored_row s = scored_row_in(scratch, h->problem, keys);
    need_keys(h->problem, h->keys);
    memset(r->columns, 0, sizeof(float) * keys);
    memset(r->slashes, 0, sizeof(float) * keys);
    for (int64_t i = 0; i < r->rows && !cancelled(h->problem); i++) {
        start_row(h, &s, r->row + i);
        score_keys(h, &s, r->row + i, 0, keys);
        double lse = log_sum_exp(&s);
        r->lse[i] = (float)lse;
        for (int64_t j = 0; j < s.count; j++) {
            float a = (float)exp(s.score[j] - lse);
            int64_t distance = h->offset + r->row + i - s.key[j];
            r->columns[s.key[j]] += a;
            if (distance >= 0 && distance < keys) r->slashes[distance] += a;
        }
    }
}

static void row_mass_head(const trivium_row_mass *r, void *scratch) {
    const trivium_head *h = r->head;
    int64_t keys = h->keys->key.rows, blocks = (keys + r->block_size - 1) / r->block_size;
    scored_row s = scored_row_in(scratch, h->problem, keys);
    need_keys(h->problem, h->keys);
    for (int64_t i = 0; i < r->rows && !cancelled(h->problem); i++) {
        start_row(h, &s, r->row[i]);
        score_keys(h, &s, r->row[i], 0, keys);
        double lse = log_sum_exp(&s);
        r->lse[r->place[i]] = (float)lse;
        float *mass = r->mass + r->place[i] * blocks;
        for (int64_t b = 0, j = 0; b < blocks; b++) {
            double sum = 0;
            for (; j < s.count && s.key[j] < (b + 1) * r->block_size; j++) sum += exp(s.score[j] - lse);
            mass[b] = (float)sum;
        }
    }
}

static void row_mass_serial(const trivium_row_mass *r, int32_t count, void *scratch) {
    for (; count > 0; count--) row_mass_head(r++, scratch);
}

static double square_score(const trivium_square_mass *c, int64_t m, int64_t n) {
    const trivium_problem *p = c->part->problem;
    double sum = 0, q[256], room[256];
    for (const trivium_head *h = c->part; h < c->part + c->parts; h++) {
        int64_t row = m - h->offset;
        if (row < 0 || row >= h->query.rows || n >= h->keys->key.rows) continue;
        load_row(q, p, &h->query, row, NULL);
        load_row(room, p, &h->keys->key, n, NULL);
        for (int i = 0; i < p->key_dim; i++) sum += q[i] * room[i];
    }
    return sum * p->scale;
}

static void square_mass_serial(const trivium_square_mass *c, void *scratch) {
    const trivium_problem *p = c->part->problem;
    int64_t keys = c->part->keys->key.rows, blocks = (keys + c->block_size - 1) / c->block_size;
    scored_row s = scored_row_in(scratch, p, keys);
    for (int64_t m = c->row; m < c->row + c->rows && !cancelled(p); m++) {
        s.count = 0;
        for (int64_t n = first_visible(p, m); n < last_visible(p, m, keys); n++) {
            s.key[s.count] = n;
            s.score[s.count++] = square_score(c, m, n);
        }
        double lse = log_sum_exp(&s);
        float *mass = c->mass + (m / c->block_size - c->row / c->block_size) * blocks;
        for (int64_t b = 0, i = 0; b < blocks; b++) {
            double sum = 0;
            for (; i < s.count && s.key[i] < (b + 1) * c->block_size; i++) sum += exp(s.score[i] - lse);
            mass[b] += (float)sum;
        }
    }
}

static void column_score_serial(const trivium_column_score *c, void *scratch) {
    const trivium_problem *p = c->head->problem;
    scored_row s = scored_row_in(scratch, p, c->head->keys->key.rows);
    double top = -INFINITY;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t r = c->row; r < c->row + c->rows && !cancelled(p); r++) {
            start_row(c->head, &s, r);
            for (int64_t n = c->first; n < c->last; n++) {
                double x = score(c->head, &s, c->head->offset + r, n);
                if (!pass) top = fmax(top, x);
                else c->score[n - c->first] += (float)exp(x - top);
            }
        }
        if (!pass) memset(c->score, 0, sizeof(float) * (c->last - c->first));
    }
}

static void rest_serial(const trivium_rest *c, void *scratch) {
    const trivium_head *h = c->head;
    const trivium_problem *p = h->problem;
    scored_row s = scored_row_in(scratch, p, h->keys->key.rows);
    pack_head(p, h->keys);
    for (int64_t r = c->row; r < c->row + c->rows && !cancelled(p); r++) {
        start_row(h, &s, r);
        for (int64_t n = c->first, i = 0; n < c->last; n++) {
            while (i < c->count && c->kept[i] < n) i++;
            if (i < c->count && c->kept[i] == n) continue;
            s.key[s.count] = n;
            s.score[s.count++] = score(h, &s, h->offset + r, n);
        }
        double lse = log_sum_exp(&s), out[256] = {0};
        for (int64_t i = 0; i < s.count; i++) {
            float room[256];
            const float *v = value_row(p, h->keys, s.key[i], room);
            for (int j = 0; j < p->value_dim; j++) out[j] += exp(s.score[i] - lse) * v[j];
        }
        to_floats(c->room, out, p->value_dim);
        c->room[p->value_dim] = (float)lse;
        add_rest(c, r, c->room);
    }
}

static void pool_serial(const trivium_pool *p) {
    float *mean = p->mean;
    for (int64_t row = 0; row < p->rows.rows; mean += p->rows.cols) {
        int64_t next = (floor_div(p->offset + row, p->block_size) + 1) * p->block_size - p->offset;
        int64_t last = min_i64(next, p->rows.rows);
        for (int j = 0; j < p->rows.cols; j++) {
            double sum = 0;
            for (int64_t r = row; r < last; r++) sum += load_number(p->rows.data, p->rows.dtype, r * p->rows.stride + j);
            mean[j] = (float)(sum / (double)(last - row));
        }
        row = last;
    }
}

static void dots_serial(const float *a, int64_t rows, const float *b, int64_t keys, int64_t dim, float *product) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < keys; j++) {
            double sum = 0;
            for (int64_t k = 0; k < dim; k++) sum += (double)a[i * dim + k] * b[j * dim + k];
            product[i * keys + j] = (float)sum;
        }
}

// What probes of all parts but one say about a tile.
static double probed_score(const trivium_levels *c, int64_t i, int64_t j, int left_out, double probability) {
    double own = 0, around = 0, weight = 0;
    int64_t count = 0;
    for (int64_t k = 0; k < c->probes; k++) {
        int64_t r = c->row[k], distance = r - i;
        if (c->part[k] == left_out || distance < -c->reach || distance > c->reach) continue;
        double mass = c->mass[k * c->columns + j];
        if (!distance) {
            own += mass;
            count++;
        }
        if (j < c->low[r] || j >= c->high[r]) continue;
        around += c->weight[c->reach + distance] * mass;
        weight += c->weight[c->reach + distance];
    }
    if (weight > 0) around /= weight;
    return ((count ? own / (double)count : around) + around + probability / 2) / 2.5;
}

static void tile_levels_serial(const trivium_levels *c) {
    int choices = trivium_choices(c);
    for (int64_t i = 0; i < c->rows; i++) {
        const float *similarity = c->similarity + i * c->columns;
        double top = -INFINITY, sum = 0;
        for (int64_t j = c->low[i]; j < c->high[i]; j++)
            if (similarity[j] > top) top = similarity[j];
        for (int64_t j = c->low[i]; j < c->high[i]; j++) sum += exp(similarity[j] - top);
        for (int choice = 0; choice < choices; choice++)
            for (int64_t j = c->low[i]; j < c->high[i]; j++) {
                double probability = exp(similarity[j] - top) / sum;
                double score = c->parts ? probed_score(c, i, j, c->parts > 1 ? choice : -1, probability) : probability;
                int level = 0;
                while (level < c->levels && score >= c->threshold[level]) level++;
                c->level[(choice * c->rows + i) * c->columns + j] = (uint8_t)level;
            }
    }
}

static void weighted_sum_serial(const trivium_sum *w, void *scratch) {
    (void)scratch;
    for (int64_t i = w->first; i < w->first + w->count; i++) {
        for (int s = 0; s < w->sources; s++) w->nonfinite[s] += !isfinite(load_number(w->in[s], w->in_dtype[s], i));
        for (int c = 0; c < w->candidates; c++) {
            const double *weight = w->weight + c * w->sources;
            double sum = 0;
            for (int s = 0; s < w->sources; s++) {
                double x = load_number(w->in[s], w->in_dtype[s], i);
                sum = w->wide ? fma(weight[s], x, sum) : fmaf((float)weight[s], (float)x, (float)sum);
            }
            store_number(w->out[c], w->out_dtype[c], i, sum);
        }
    }
}

// d[s][i] of the contract.
static float difference(const trivium_differences *d, int source, int64_t i) {
    float x = (float)load_number(d->in[source], d->in_dtype[source], i);
    return d->based ? x - (float)load_number(d->in[d->sources], d->in_dtype[d->sources], i) : x;
}

static void count_serial(const trivium_differences *d) {
    for (int s = 0; s < d->sources + d->based; s++)
        for (int64_t i = d->first; i < d->first + d->count; i++) d->nonfinite[s] += !isfinite(load_number(d->in[s], d->in_dtype[s], i));
}

static void products_serial(const trivium_products *p, void *scratch) {
    (void)scratch;
    const trivium_differences *d = &p->of;
    count_serial(d);
    for (int s = 0; s < d->sources; s++)
        for (int r = 0; r <= s; r++) {
            double part[16] = {0}, sum = 0;
            for (int64_t i = 0; i < d->count; i++) part[i % 16] += (double)difference(d, s, d->first + i) * (double)difference(d, r, d->first + i);
            for (int l = 0; l < 16; l++) sum += part[l];
            p->product[s * d->sources + r] += sum;
        }
}

static void magnitudes_serial(const trivium_magnitudes *m, void *scratch) {
    (void)scratch;
    const trivium_differences *d = &m->of;
    count_serial(d);
    for (int w = 0; w < m->walks; w++) {
        const trivium_walk *walk = &m->walk[w];
        for (int64_t i = d->first; i < d->first + d->count; i++) {
            float size = fabsf(difference(d, walk->source, i));
            uint32_t bits;
            memcpy(&bits, &size, sizeof bits);
            if (isnan(size)) bits = 0x7fc00000;
            if ((uint64_t)bits >> walk->known == (uint64_t)walk->prefix >> walk->known)
                walk->counts[bits >> walk->shift & ((1u << (walk->known - walk->shift)) - 1)]++;
        }
    }
}

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// The difference, or 0 where it is dropped.
static double kept_of(const trivium_sparse *p, int s, int64_t i) {
    double d = difference(&p->of, s, i);
    uint64_t draw = mix(p->seed + mix(((uint64_t)s << 48) + (uint64_t)(p->element + i))) >> 11;
    return fabs(d) >= p->low[s] && fabs(d) < p->high[s] && draw < p->threshold ? d : 0;
}

static void sparse_serial(const trivium_sparse *p, void *scratch) {
    (void)scratch;
    const trivium_differences *d = &p->of;
    count_serial(d);
    for (int64_t i = d->first; i < d->first + d->count; i++) {
        double elected = 0, sum = 0, weight = 0;
        for (int s = 0; s < d->sources; s++) elected = fma(p->factor * p->weight[s], kept_of(p, s, i), elected);
        for (int s = 0; s < d->sources; s++) {
            double k = p->factor * p->weight[s] * kept_of(p, s, i);
            if (k == 0 || (p->consensus && (k > 0) != (elected >= 0))) continue;
            sum = fma(p->factor * p->weight[s], kept_of(p, s, i), sum);
            weight += p->weight[s];
        }
        if (p->normalise && weight != 0) sum /= weight;
        store_number(p->out, p->out_dtype, i, fma(p->scale, sum, (float)load_number(d->in[d->sources], d->in_dtype[d->sources], i)));
    }
}

// A difference in float64 of what float32 holds.
static double wide_difference(const trivium_differences *d, int source, int64_t i) {
    return (double)(float)load_number(d->in[source], d->in_dtype[source], i) - (double)(float)load_number(d->in[d->sources], d->in_dtype[d->sources], i);
}

static double base_of(const trivium_differences *d, int64_t i) {
    return (float)load_number(d->in[d->sources], d->in_dtype[d->sources], i);
}

static void store_rounded(void *data, int dtype, int64_t i, double x) { store_number(data, dtype, i, (float)x + 0.0f); }

typedef struct {
    double size; // of a difference; below 0: it is NaN
    int64_t place;
} sized;

// A stable sort: runs of twice the length from runs. room: [n]
static void sort_sized(sized *x, sized *room, int64_t n) {
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t first = 0; first < n; first += 2 * run) {
            int64_t a = first, middle = min_i64(first + run, n), b = middle, last = min_i64(first + 2 * run, n);
            for (int64_t k = first; k < last; k++) room[k] = b >= last || (a < middle && x[a].size <= x[b].size) ? x[a++] : x[b++];
        }
        memcpy(x, room, sizeof(sized) * (size_t)n);
    }
}

// Writes what is left of a row of one source, over its weight.
static void draw_row(double *kept, const trivium_ranked *r, int source, int64_t first, sized *order) {
    for (int64_t i = 0; i < r->row; i++) {
        double size = fabs(wide_difference(&r->of, source, first + i));
        order[i] = (sized){isnan(size) ? -1 : size, i};
    }
    sort_sized(order, order + r->row, r->row);
    for (int64_t rank = 0; rank < r->row; rank++) {
        int64_t i = order[rank].place;
        uint64_t draw = mix(r->seed + mix(((uint64_t)source << 48) + (uint64_t)(r->element + first + i))) >> 11;
        kept[i] = (double)draw * 0x1p-53 < r->chance[rank] ? wide_difference(&r->of, source, first + i) / r->chance[rank] : 0;
    }
}

static void ranked_serial(const trivium_ranked *r, void *scratch) {
    (void)scratch;
    const trivium_differences *d = &r->of;
    double *kept = (double *)r->room; // [sources, row]
    sized *order = (sized *)(kept + d->sources * r->row);
    count_serial(d);
    for (int64_t first = d->first; first < d->first + d->count; first += r->row) {
        for (int s = 0; s < d->sources; s++) draw_row(kept + s * r->row, r, s, first, order);
        for (int64_t i = 0; i < r->row; i++) {
            double elected = 0, sum = 0, weight = 0;
            for (int s = 0; s < d->sources; s++) elected += product_of(r->weight[s], kept[s * r->row + i]);
            for (int s = 0; s < d->sources; s++) {
                double k = product_of(r->weight[s], kept[s * r->row + i]);
                if (k == 0 || (r->consensus && (k > 0) != (elected >= 0))) continue;
                sum += k;
                weight += r->weight[s];
            }
            if (r->normalise && weight != 0) sum /= weight;
            store_rounded(r->out, r->out_dtype, first + i, base_of(d, first + i) + product_of(r->scale, r->consensus || r->normalise ? sum : elected));
        }
    }
}

static float variance(const trivium_differences *d, int64_t i) {
    double n = d->sources, mean = 0, squares = 0;
    for (int s = 0; s < d->sources; s++) mean += wide_difference(d, s, i) / n;
    for (int s = 0; s < d->sources; s++) {
        double x = wide_difference(d, s, i) - mean;
        squares += x * x / n;
    }
    return (float)squares;
}

static void variances_serial(const trivium_variances *v, void *scratch) {
    (void)scratch;
    const trivium_walk *w = &v->walk;
    count_serial(&v->of);
    for (int64_t i = v->of.first; i < v->of.first + v->of.count; i++) {
        float x = variance(&v->of, i);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if (isnan(x)) bits = 0x7fc00000;
        if ((uint64_t)bits >> w->known == (uint64_t)w->prefix >> w->known) w->counts[bits >> w->shift & ((1u << (w->known - w->shift)) - 1)]++;
    }
}

static void squares_serial(const trivium_squares *q, void *scratch) {
    (void)scratch;
    count_serial(&q->of);
    for (int64_t i = q->of.first; i < q->of.first + q->of.count; i++) {
        if (variance(&q->of, i) < q->limit) continue;
        for (int s = 0; s < q->of.sources; s++) q->square[s] += product_of(wide_difference(&q->of, s, i), wide_difference(&q->of, s, i));
    }
}

static double majority_of(const trivium_majority *m, int64_t i) {
    double all = 0, sum = 0, weight = 0;
    for (int s = 0; s < m->of.sources; s++) all += wide_difference(&m->of, s, i);
    for (int s = 0; s < m->of.sources; s++) {
        double d = wide_difference(&m->of, s, i);
        if (d == 0 || (d > 0) != (all >= 0)) continue;
        sum += product_of(m->weight[s], d);
        weight += m->weight[s];
    }
    return weight != 0 ? sum / weight : 0;
}

static void majority_serial(const trivium_majority *m, void *scratch) {
    (void)scratch;
    count_serial(&m->of);
    for (int64_t i = m->of.first; i < m->of.first + m->of.count; i++)
        store_rounded(m->out, m->out_dtype, i, base_of(&m->of, i) + (variance(&m->of, i) >= m->limit ? majority_of(m, i) : 0));
}

static int supported_serial(void) { return 1; }

static const trivium_kernels kernels_serial = {
    .name = "serial",
    .rank = 0,
    .supported = supported_serial,
    .pack_bytes = pack_bytes_serial,
    .pack = pack_serial,
    .scratch_bytes = scratch_bytes_serial,
    .attend = attend_serial,
    .representative = representative_serial,
    .row_mass = row_mass_serial,
    .pool = pool_serial,
    .weighted_sum = weighted_sum_serial,
    .sum_bytes = 64,
    .products = products_serial,
    .magnitudes = magnitudes_serial,
    .sparse = sparse_serial,
    .difference_bytes = 64,
    .square_mass = square_mass_serial,
    .column_score = column_score_serial,
    .rest = rest_serial,
    .ranked = ranked_serial,
    .variances = variances_serial,
    .squares = squares_serial,
    .majority = majority_serial,
    .dots = dots_serial,
    .tile_levels = tile_levels_serial,
};
TRIVIUM_REGISTER(kernels_serial);
