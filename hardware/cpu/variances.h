// Variances over checkpoints, and sums of what varies most, for every instruction
// set, included by sums.h. Same bytes as serial: sums of squares are added in the
// order of elements, several sources at a time.

// x / n, rounded once, for a whole number n and its reciprocal: the remainder of
// the product with the reciprocal is exact, and a quotient by a small number is
// never so near the middle of two that its correction could err. Not for infinite x,
// of which it makes NaN, as the difference from the mean does anyway.
INLINE double divided(double x, double n, double reciprocal) {
    double near = x * reciprocal;
    return __builtin_fma(__builtin_fma(-near, n, x), reciprocal, near);
}

// Writes a step of the differences of all sources, and their variances to s->x.
static double *load_varying(difference_scratch *s, const trivium_differences *d, int64_t first, int n) {
    double *restrict x = (double *)s->own, *restrict mean = s->elected, *restrict squares = s->weight;
    double sources = d->sources, reciprocal = 1 / sources;
    load_base(s, d, first, n);
    memset(mean, 0, sizeof s->elected);
    memset(squares, 0, sizeof s->weight);
    for (int a = 0; a < d->sources; a++) {
        load_values(s->x, s, d, a, first, n);
        for (int i = 0; i < n; i++) {
            double delta = (double)s->x[i] - (double)s->base[i];
            x[a * STEP + i] = delta;
            mean[i] += divided(delta, sources, reciprocal);
        }
    }
    for (int a = 0; a < d->sources; a++)
        for (int i = 0; i < n; i++) {
            double away = x[a * STEP + i] - mean[i];
            squares[i] += divided(away * away, sources, reciprocal);
        }
    for (int i = 0; i < n; i++) s->x[i] = (float)squares[i];
    return x;
}

static void NAME(variances)(const trivium_variances *v, void *scratch) {
    difference_scratch *s = scratch;
    for (int64_t first = v->of.first; first < v->of.first + v->of.count; first += STEP) {
        int n = (int)min_i64(STEP, v->of.first + v->of.count - first);
        load_varying(s, &v->of, first, n);
        count_magnitudes(&v->walk, s, s->x, n);
    }
}

// Adds up the elements of K sources; K is a constant, so that sums are in registers.
INLINE void add_in_order(int K, double *total, const double *x, int n) {
    double sum[4];
    for (int a = 0; a < K; a++) sum[a] = total[a];
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int a = 0; a < K; a++) sum[a] += x[a * STEP + i];
    for (int a = 0; a < K; a++) total[a] = sum[a];
}

static void NAME(squares)(const trivium_squares *q, void *scratch) {
    difference_scratch *s = scratch;
    int sources = q->of.sources;
    for (int64_t first = q->of.first; first < q->of.first + q->of.count; first += STEP) {
        int n = (int)min_i64(STEP, q->of.first + q->of.count - first);
        double *x = load_varying(s, &q->of, first, n);
        for (int a = 0; a < sources; a++)
            for (int i = 0; i < n; i++) {
                double square = x[a * STEP + i] * x[a * STEP + i];
                x[a * STEP + i] = s->x[i] < q->limit ? 0 : square;
            }
        for (int a = 0; a < sources; a += 4)
            switch (sources - a) {
            case 1: add_in_order(1, q->square + a, x + a * STEP, n); break;
            case 2: add_in_order(2, q->square + a, x + a * STEP, n); break;
            case 3: add_in_order(3, q->square + a, x + a * STEP, n); break;
            default: add_in_order(4, q->square + a, x + a * STEP, n);
            }
    }
}

static void NAME(majority)(const trivium_majority *m, void *scratch) {
    difference_scratch *s = scratch;
    double *restrict all = s->elected, *restrict sum = s->sum.wide, *restrict total = s->weight;
    for (int64_t first = m->of.first; first < m->of.first + m->of.count; first += STEP) {
        int n = (int)min_i64(STEP, m->of.first + m->of.count - first);
        const double *x = load_varying(s, &m->of, first, n);
        memset(all, 0, sizeof s->elected);
        memset(sum, 0, sizeof s->sum);
        memset(total, 0, sizeof s->weight);
        for (int a = 0; a < m->of.sources; a++)
            for (int i = 0; i < n; i++) all[i] += x[a * STEP + i];
        for (int a = 0; a < m->of.sources; a++) {
            const double *restrict d = x + a * STEP;
            double weight = m->weight[a];
            for (int i = 0; i < n; i++) {
                int agreed = (d[i] != 0) & ((d[i] > 0) == (all[i] >= 0));
                double term = product_of(weight, d[i]); // weights of infinite differences are NaN
                sum[i] += agreed ? term : 0;            // sums are never -0
                total[i] += agreed ? weight : 0;
            }
        }
        for (int i = 0; i < n; i++) sum[i] /= total[i] != 0 ? total[i] : 1;
        for (int i = 0; i < n; i++) sum[i] = s->x[i] >= m->limit ? sum[i] : 0;
        store_above_base(s, s->base, m->out, m->out_dtype, 1, first, n);
    }
}
