// Differences of checkpoints from a base, for every instruction set, included
// by sums.h: their products, counts of their magnitudes, and sums of what is
// left of them. A step of every source stays in the cache. Loops are written so
// that the compiler takes whole vectors of them, and no result depends on how
// many lanes those have: the same bytes as serial.
typedef struct {
    float base[STEP], x[STEP];
    step_numbers sum;
    double elected[STEP], weight[STEP];
    uint64_t drawn[STEP];
    uint32_t bits[STEP], keep[STEP];
    uint16_t halves[STEP];
    _Alignas(64) char own[];    // TRIVIUM_DIFFERENCE_BYTES for each source
} difference_scratch;

static void load_base(difference_scratch *s, const trivium_differences *d, int64_t first, int n) {
    if (!d->based) return;
    int dtype = d->in_dtype[d->sources];
    decode(s->base, d->in[d->sources], dtype, first, n, s->halves);
    d->nonfinite[d->sources] += dtype == TRIVIUM_FLOAT64 ? not_finite(s->x, d->in[d->sources], dtype, first, n, s->halves) : count_nonfinite(s->base, n);
}

// Writes a step of one source.
static void load_values(float *to, difference_scratch *s, const trivium_differences *d, int source, int64_t first, int n) {
    int dtype = d->in_dtype[source];
    decode(to, d->in[source], dtype, first, n, s->halves);
    d->nonfinite[source] += dtype == TRIVIUM_FLOAT64 ? not_finite(s->x, d->in[source], dtype, first, n, s->halves) : count_nonfinite(to, n);
}

// Writes a step of the difference of one source, after load_base.
static void load_difference(float *to, difference_scratch *s, const trivium_differences *d, int source, int64_t first, int n) {
    load_values(to, s, d, source, first, n);
    for (int i = 0; i < n && d->based; i++) to[i] -= s->base[i];
}

// --- products ---

// The 16 sums of a product, as vectors of the instruction set's own length: longer
// ones go through memory.
enum { WIDE = LANES / 2, CHAINS = 16 / WIDE };
typedef double wide __attribute__((vector_size(8 * WIDE), aligned(8), may_alias));

static void add_products(double part[16], const double *a, const double *b) {
    wide sum[CHAINS];
    memcpy(sum, part, sizeof sum);
    for (int i = 0; i < STEP; i += 16)
#pragma GCC unroll 8
        for (int c = 0; c < CHAINS; c++) sum[c] += *(const wide *)(a + i + c * WIDE) * *(const wide *)(b + i + c * WIDE);
    memcpy(part, sum, sizeof sum);
}

// The same for all three products of two sources, x.x, y.x and y.y, which do not
// wait for each other.
static void add_products_of_two(double part[48], const double *x, const double *y) {
    wide xx[CHAINS], yx[CHAINS], yy[CHAINS];
    memcpy(xx, part, sizeof xx);
    memcpy(yx, part + 16, sizeof yx);
    memcpy(yy, part + 32, sizeof yy);
    for (int i = 0; i < STEP; i += 16)
#pragma GCC unroll 8
        for (int c = 0; c < CHAINS; c++) {
            wide of_x = *(const wide *)(x + i + c * WIDE), of_y = *(const wide *)(y + i + c * WIDE);
            xx[c] += of_x * of_x;
            yx[c] += of_y * of_x;
            yy[c] += of_y * of_y;
        }
    memcpy(part, xx, sizeof xx);
    memcpy(part + 16, yx, sizeof yx);
    memcpy(part + 32, yy, sizeof yy);
}

// add_products_of_two for count elements, a multiple of IN_PLACE, where they lie.
enum { IN_PLACE = 64 };
INLINE void multiply_in_place(int dtype, double part[48], const void *x, const void *y, int64_t first, int64_t count) {
    wide xx[CHAINS], yx[CHAINS], yy[CHAINS];
    memcpy(xx, part, sizeof xx);
    memcpy(yx, part + 16, sizeof yx);
    memcpy(yy, part + 32, sizeof yy);
    for (int64_t i = first; i < first + count; i += IN_PLACE) {
        fetch_ahead((const char *)x + i * dtype_bytes(dtype), IN_PLACE * dtype_bytes(dtype));
        fetch_ahead((const char *)y + i * dtype_bytes(dtype), IN_PLACE * dtype_bytes(dtype));
#pragma GCC unroll 4
        for (int j = 0; j < IN_PLACE; j += 16)
#pragma GCC unroll 8
            for (int c = 0; c < CHAINS; c += 2) {
                vf of_x = load_source(dtype, x, i + j + c * WIDE), of_y = load_source(dtype, y, i + j + c * WIDE);
                wide low_x = vf_low(of_x), low_y = vf_low(of_y), high_x = vf_high(of_x), high_y = vf_high(of_y);
                xx[c] += low_x * low_x;
                yx[c] += low_y * low_x;
                yy[c] += low_y * low_y;
                xx[c + 1] += high_x * high_x;
                yx[c + 1] += high_y * high_x;
                yy[c + 1] += high_y * high_y;
            }
    }
    memcpy(part, xx, sizeof xx);
    memcpy(part + 16, yx, sizeof yx);
    memcpy(part + 32, yy, sizeof yy);
}

// Multiplies what elements can be read where they lie, and says how many: of two
// sources of one dtype and no base. Squares are finite unless an element is
// not, so that there is mostly nothing to count.
static int64_t products_in_place(difference_scratch *s, const trivium_differences *d, double part[48]) {
    int dtype = d->in_dtype[0];
    if (d->sources != 2 || d->based || d->in_dtype[1] != dtype) return 0;
    int64_t count = d->count - d->count % IN_PLACE;
    switch (dtype) {
    case TRIVIUM_BFLOAT16: multiply_in_place(TRIVIUM_BFLOAT16, part, d->in[0], d->in[1], d->first, count); break;
    case TRIVIUM_FLOAT16: multiply_in_place(TRIVIUM_FLOAT16, part, d->in[0], d->in[1], d->first, count); break;
    case TRIVIUM_FLOAT32: multiply_in_place(TRIVIUM_FLOAT32, part, d->in[0], d->in[1], d->first, count); break;
    default: return 0;
    }
    int finite = 1;
    for (int i = 0; i < 16; i++) finite &= isfinite(part[i]) && isfinite(part[32 + i]);
    for (int64_t at = 0; at < count && !finite; at += STEP)
        for (int a = 0; a < 2; a++) d->nonfinite[a] += not_finite(s->x, d->in[a], dtype, d->first + at, (int)min_i64(STEP, count - at), s->halves);
    return count;
}

static void NAME(products)(const trivium_products *p, void *scratch) {
    difference_scratch *s = scratch;
    const trivium_differences *d = &p->of;
    double *x = (double *)s->own, *part = x + (int64_t)d->sources * STEP;
    memset(part, 0, sizeof(double) * 16 * (size_t)d->sources * (size_t)(d->sources + 1) / 2);
    for (int64_t first = d->first + products_in_place(s, d, part); first < d->first + d->count; first += STEP) {
        int n = (int)min_i64(STEP, d->first + d->count - first);
        load_base(s, d, first, n);
        for (int a = 0; a < d->sources; a++) {
            load_difference(s->x, s, d, a, first, n);
            for (int i = 0; i < n; i++) x[a * STEP + i] = s->x[i];
            for (int i = n; i < STEP; i++) x[a * STEP + i] = 0;
        }
        if (d->sources == 2) {
            add_products_of_two(part, x, x + STEP);
            continue;
        }
        double *to = part;
        for (int a = 0; a < d->sources; a++)
            for (int b = 0; b <= a; b++, to += 16) add_products(to, x + a * STEP, x + b * STEP);
    }
    for (int a = 0; a < d->sources; a++)
        for (int b = 0; b <= a; b++, part += 16) {
            double sum = 0;
            for (int i = 0; i < 16; i++) sum += part[i];
            p->product[a * d->sources + b] += sum;
        }
}

// --- magnitudes ---

// Moves the bits with a prefix to the front and gives their number.
#if LANES == 16
static int with_prefix(uint32_t *bits, int n, int known, uint32_t prefix) {
    int hits = 0;
    for (int i = 0; i < n; i += LANES) {
        __mmask16 there = n - i < LANES ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512i x = _mm512_maskz_loadu_epi32(there, bits + i);
        __mmask16 match = _mm512_mask_cmpeq_epi32_mask(there, _mm512_srl_epi32(x, _mm_cvtsi32_si128(known)), _mm512_set1_epi32((int)prefix));
        _mm512_storeu_si512(bits + hits, _mm512_maskz_compress_epi32(match, x)); // not beyond what was loaded
        hits += __builtin_popcount(match);
    }
    return hits;
}
#else
static int with_prefix(uint32_t *bits, int n, int known, uint32_t prefix) {
    int hits = 0;
    for (int i = 0; i < n; i++) { // without a jump that nobody could foretell
        uint32_t x = bits[i];
        bits[hits] = x;
        hits += x >> known == prefix;
    }
    return hits;
}
#endif

static void count_magnitudes(const trivium_walk *w, difference_scratch *s, const float *x, int n) {
    uint32_t mask = (1u << (w->known - w->shift)) - 1;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        s->bits[i] = bits > 0x7f800000 ? 0x7fc00000 : bits; // NaN is one magnitude, the largest
    }
    int hits = w->known < 32 ? with_prefix(s->bits, n, w->known, w->prefix >> w->known) : n;
    for (int i = 0; i < hits; i++) w->counts[s->bits[i] >> w->shift & mask]++;
}

static void NAME(magnitudes)(const trivium_magnitudes *m, void *scratch) {
    difference_scratch *s = scratch;
    const trivium_differences *d = &m->of;
    float *x = (float *)s->own;
    for (int64_t first = d->first; first < d->first + d->count; first += STEP) {
        int n = (int)min_i64(STEP, d->first + d->count - first);
        load_base(s, d, first, n);
        for (int a = 0; a < d->sources; a++) load_difference(x + a * STEP, s, d, a, first, n);
        for (int w = 0; w < m->walks; w++) count_magnitudes(&m->walk[w], s, x + m->walk[w].source * STEP, n);
    }
}

// --- sums of what is left ---

static inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// Sets to 0 what the draw drops.
static void drop_drawn(float *x, difference_scratch *s, const trivium_sparse *p, int source, int64_t first, int n) {
    uint64_t at = ((uint64_t)source << 48) + (uint64_t)(p->element + first);
    for (int i = 0; i < n; i++) s->drawn[i] = mix(p->seed + mix(at + (uint64_t)i)) >> 11;
    for (int i = 0; i < n; i++) s->keep[i] = s->drawn[i] < p->threshold ? ~0u : 0;
    uint32_t *bits = s->bits;
    memcpy(bits, x, sizeof(float) * n);
    for (int i = 0; i < n; i++) bits[i] &= s->keep[i];
    memcpy(x, bits, sizeof(float) * n);
}

// Keeps what is in range and adds it to the sum that elects the signs.
static void elect(float *restrict x, double *restrict elected, float low, float high, double weight, int n) {
    for (int i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        x[i] = (size >= low) & (size < high) ? x[i] : 0;
    }
    for (int i = 0; i < n; i++) elected[i] = __builtin_fma(weight, (double)x[i], elected[i]);
}

static void add_agreed(difference_scratch *s, const float *restrict x, double factor, double weight, int consensus, int n) {
    double *restrict sum = s->sum.wide, *restrict total = s->weight, *restrict elected = s->elected;
    for (int i = 0; i < n; i++) {
        double k = factor * (double)x[i], more = __builtin_fma(factor, (double)x[i], sum[i]);
        int agreed = (k != 0) & (!consensus | ((k > 0) == (elected[i] >= 0)));
        sum[i] = agreed ? more : sum[i];
        total[i] += agreed ? weight : 0;
    }
}

static void NAME(sparse)(const trivium_sparse *p, void *scratch) {
    difference_scratch *s = scratch;
    const trivium_differences *d = &p->of;
    float *x = (float *)s->own;
    for (int64_t first = d->first; first < d->first + d->count; first += STEP) {
        int n = (int)min_i64(STEP, d->first + d->count - first);
        load_base(s, d, first, n);
        memset(s->elected, 0, sizeof s->elected);
        for (int a = 0; a < d->sources; a++) {
            load_difference(x + a * STEP, s, d, a, first, n);
            if (p->threshold < (uint64_t)1 << 53) drop_drawn(x + a * STEP, s, p, a, first, n);
            elect(x + a * STEP, s->elected, p->low[a], p->high[a], p->factor * p->weight[a], n);
        }
        double *sum = s->sum.wide;
        if (p->consensus || p->normalise) {
            memset(sum, 0, sizeof s->sum);
            memset(s->weight, 0, sizeof s->weight);
            for (int a = 0; a < d->sources; a++) add_agreed(s, x + a * STEP, p->factor * p->weight[a], p->weight[a], p->consensus, n);
        } else {
            memcpy(sum, s->elected, sizeof s->elected);
        }
        for (int i = 0; i < n && p->normalise; i++) sum[i] = s->weight[i] != 0 ? sum[i] / s->weight[i] : sum[i];
        for (int i = 0; i < n; i++) sum[i] = __builtin_fma(p->scale, sum[i], (double)s->base[i]);
        encode(p->out, p->out_dtype, first, n, &s->sum, 1, s->x);
    }
}

// Stores base + scale * s->sum in float32, and then in dtype; -0 as 0.
static void store_above_base(difference_scratch *s, const float *base, void *out, int dtype, double scale, int64_t first, int n) {
    for (int i = 0; i < n; i++) s->x[i] = (float)((double)base[i] + product_of(scale, s->sum.wide[i])) + 0.0f;
    memcpy(s->sum.narrow, s->x, sizeof(float) * n);
    encode(out, dtype, first, n, &s->sum, 0, s->x);
}
