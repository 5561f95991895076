// Means of rows, and weighted sums of checkpoints, for every instruction set, included after
// tiles.h. Elements go by steps of 1024 that stay in the first-level cache: a
// source is decoded once for up to CANDIDATES results. The loops are left to
// the compiler, but for the 16-bit types. Same bytes as serial: the same fused
// multiply-adds in the same order.
static void NAME(pool)(const trivium_pool *p) {
    _Alignas(64) float x[256], sum[256];
    float *mean = p->mean;
    int cols = p->rows.cols;
    for (int64_t row = 0; row < p->rows.rows; mean += cols) {
        int64_t next = (floor_div(p->offset + row, p->block_size) + 1) * p->block_size - p->offset;
        int64_t last = min_i64(next, p->rows.rows);
        memset(sum, 0, sizeof sum);
        for (int64_t r = row; r < last; r++) {
            load_floats(x, &p->rows, r);
            for (int j = 0; j < cols; j++) sum[j] += x[j];
        }
        for (int j = 0; j < cols; j++) mean[j] = sum[j] / (float)(last - row);
        row = last;
    }
}

enum { STEP = 1024, CANDIDATES = 16 };

typedef struct {
    union { float narrow[STEP]; double wide[STEP]; } x;
    union { float narrow[STEP]; double wide[STEP]; } sum[CANDIDATES];
    float floats[STEP];
    uint16_t halves[STEP];
} sum_scratch;

static void decode_bf16(float *to, const uint16_t *from, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_bf16(from + i));
    for (; i < n; i++) to[i] = (float)load_number(from, TRIVIUM_BFLOAT16, i);
}

static void decode_f16(float *to, const uint16_t *from, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_f16(from + i));
    for (; i < n; i++) to[i] = (float)load_number(from, TRIVIUM_FLOAT16, i);
}

// An 8-bit float is the upper half of a float16, after a shift and, for e4m3,
// a factor for the difference in bias.
static void decode_f8(float *to, const uint8_t *from, int n, int e4m3, uint16_t *halves) {
    for (int i = 0; i < n; i++) halves[i] = (uint16_t)(e4m3 ? (from[i] & 0x80) << 8 | (from[i] & 0x7f) << 7 : from[i] << 8);
    decode_f16(to, halves, n);
    for (int i = 0; i < n && e4m3; i++) to[i] = (from[i] & 0x7f) == 0x7f ? NAN : to[i] * 256;
}

static int64_t count_nonfinite(const float *x, int n) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        count += (bits & 0x7fffffff) >= 0x7f800000;
    }
    return count;
}

// Decodes n elements into s->x and gives the number of those not finite.
static int64_t decode(sum_scratch *s, const trivium_sum *w, int source, int64_t first, int n) {
    int dtype = w->in_dtype[source];
    const char *from = (const char *)w->in[source] + first * dtype_bytes(dtype);
    float *to = w->wide ? s->floats : s->x.narrow;
    if (dtype == TRIVIUM_FLOAT64) {
        const double *x = (const double *)from;
        int64_t count = 0;
        for (int i = 0; i < n; i++) count += !isfinite(x[i]);
        for (int i = 0; i < n && w->wide; i++) s->x.wide[i] = x[i];
        for (int i = 0; i < n && !w->wide; i++) to[i] = (float)x[i];
        return count;
    }
    switch (dtype) {
    case TRIVIUM_FLOAT32: memcpy(to, from, sizeof(float) * n); break;
    case TRIVIUM_BFLOAT16: decode_bf16(to, (const uint16_t *)from, n); break;
    case TRIVIUM_FLOAT16: decode_f16(to, (const uint16_t *)from, n); break;
    default: decode_f8(to, (const uint8_t *)from, n, dtype == TRIVIUM_FLOAT8_E4M3, s->halves);
    }
    for (int i = 0; i < n && w->wide; i++) s->x.wide[i] = to[i];
    return count_nonfinite(to, n);
}

// To float32, but such that rounding it once more is rounding x once: cut off,
// with the last bit set when something was lost.
static float round_to_odd(double x) {
    float y = (float)x;
    if (x != x || y == x) return y;
    uint32_t bits;
    memcpy(&bits, &y, sizeof bits);
    if (fabs((double)y) > fabs(x)) bits--;
    bits |= 1;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static void encode(sum_scratch *s, const trivium_sum *w, int c, int candidate, int64_t first, int n) {
    int dtype = w->out_dtype[candidate], i = 0;
    char *to = (char *)w->out[candidate] + first * dtype_bytes(dtype);
    float *from = w->wide ? s->floats : s->sum[c].narrow;
    if (w->wide && dtype != TRIVIUM_BFLOAT16 && dtype != TRIVIUM_FLOAT16) {
        for (; i < n; i++) store_number(to, dtype, i, s->sum[c].wide[i]);
        return;
    }
    for (int j = 0; j < n && w->wide; j++) from[j] = round_to_odd(s->sum[c].wide[j]);
    for (int j = 0; j < n; j++) from[j] = from[j] != from[j] ? NAN : from[j];
    switch (dtype) {
    case TRIVIUM_FLOAT32: memcpy(to, from, sizeof(float) * n); return;
    case TRIVIUM_BFLOAT16: for (; i + LANES <= n; i += LANES) vf_store_bf16((uint16_t *)to + i, vf_load(from + i)); break;
    case TRIVIUM_FLOAT16: for (; i + LANES <= n; i += LANES) vf_store_f16((uint16_t *)to + i, vf_load(from + i)); break;
    }
    for (; i < n; i++) store_number(to, dtype, i, from[i]);
}

static void add_source(sum_scratch *s, int c, double weight, int wide, int n) {
    if (wide) {
        for (int i = 0; i < n; i++) s->sum[c].wide[i] = __builtin_fma(weight, s->x.wide[i], s->sum[c].wide[i]);
        return;
    }
    float narrow = (float)weight;
    for (int i = 0; i < n; i++) s->sum[c].narrow[i] = __builtin_fmaf(narrow, s->x.narrow[i], s->sum[c].narrow[i]);
}

static void NAME(weighted_sum)(const trivium_sum *w, void *scratch) {
    sum_scratch *s = scratch;
    for (int64_t first = w->first; first < w->first + w->count; first += STEP) {
        int n = (int)min_i64(STEP, w->first + w->count - first);
        for (int from = 0; from < w->candidates; from += CANDIDATES) {
            int candidates = w->candidates - from < CANDIDATES ? w->candidates - from : CANDIDATES;
            memset(s->sum, 0, sizeof s->sum[0] * candidates);
            for (int source = 0; source < w->sources; source++) {
                int64_t bad = decode(s, w, source, first, n);
                if (!from) w->nonfinite[source] += bad;
                for (int c = 0; c < candidates; c++) add_source(s, c, w->weight[(from + c) * w->sources + source], w->wide, n);
            }
            for (int c = 0; c < candidates; c++) encode(s, w, c, from + c, first, n);
        }
    }
}

#define TABLE(isa, order)                          \
    const trivium_kernels trivium_kernels_##isa = { \
        .name = #isa,                              \
        .rank = order,                             \
        .supported = supported_##isa,              \
        .pack_bytes = pack_bytes_##isa,            \
        .pack = pack_##isa,                        \
        .scratch_bytes = scratch_bytes_##isa,      \
        .attend = attend_##isa,                    \
        .representative = representative_##isa,    \
        .row_mass = row_mass_##isa,                \
        .pool = pool_##isa,                        \
        .weighted_sum = weighted_sum_##isa,        \
        .sum_bytes = sizeof(sum_scratch),          \
    };                                             \
    TRIVIUM_REGISTER(trivium_kernels_##isa)
