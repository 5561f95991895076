// Runs every operation of every table this machine supports on random shapes
// in memory of exactly the right size, for AddressSanitizer and UBSan to watch,
// and compares with serial. Arguments: seed, cases.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "../numbers.h"
#include "../support.h"

static uint64_t state;
static int below(int n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int)((state >> 33) % (uint64_t)n);
}
static float normal(void) { return (float)(below(2001) + below(2001) + below(2001) - 3000) / 800; }

static void *exactly(size_t bytes) { return malloc(bytes ? bytes : 1); }
// As sessions align it, but not a byte more.
static void *aligned(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 1) ? NULL : p;
}

static trivium_matrix matrix(int rows, int cols, int dtype) {
    int stride = cols + below(3) * 5;
    size_t count = rows ? (size_t)(rows - 1) * stride + cols : 0;
    trivium_matrix m = {exactly(count * dtype_bytes(dtype)), rows, stride, cols, dtype};
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < cols; i++) store_number(m.data, dtype, (int64_t)r * stride + i, normal());
    return m;
}

typedef struct {
    trivium_problem problem;
    trivium_band band[2];
    trivium_rotation query_rotation[2], key_rotation[1];
    trivium_keys keys;
    trivium_head head;
    trivium_matrix output;
    int32_t *block, cancel;
    int blocks, block_size, rows, count;
} shape;

static float *turns(int rows, int half) {
    float *t = exactly(sizeof(float) * 2 * rows * half);
    for (int i = 0; i < rows * half; i++) t[2 * i] = cosf((float)i), t[2 * i + 1] = sinf((float)i);
    return t;
}

static void draw(shape *s) {
    int dim = 1 + below(256), value_dim = below(3) ? dim : 1 + below(256), dtype = below(3);
    int keys = 1 + below(400), two = below(2), half = below(dim / 2 + 1), border = 1 + below(100);
    s->rows = 1 + below(128);
    s->problem = (trivium_problem){
        .band = s->band, .cancel = &s->cancel, .scale = 1 / sqrtf((float)dim), .softcap = below(3) ? 0 : 20, .window = below(3) ? 0 : 1 + below(200),
        .causal = below(2), .bands = 1 + two, .key_dim = dim, .value_dim = value_dim, .half = half, .interleaved = below(2),
        .query_variants = 1 + two, .key_variants = 1, .dtype = dtype, .high = dtype == TRIVIUM_FLOAT32};
    s->band[0] = (trivium_band){1, INT64_MIN, two ? border : INT64_MAX, 0, 0};
    s->band[1] = (trivium_band){1, border, INT64_MAX, 1, 0};
    s->query_rotation[0] = (trivium_rotation){NULL, 0};
    s->query_rotation[1] = (trivium_rotation){turns(s->rows, half), 2 * half};
    s->key_rotation[0] = below(2) ? (trivium_rotation){turns(keys, half), 2 * half} : (trivium_rotation){NULL, 0};
    s->keys = (trivium_keys){matrix(keys, dim, dtype), matrix(keys, value_dim, dtype), s->key_rotation, NULL};
    s->head = (trivium_head){&s->problem, &s->keys, s->query_rotation, matrix(s->rows, dim, dtype), below(300)};
    s->output = matrix(s->rows, value_dim, dtype);
    s->block_size = 16 * (1 + below(12));
    s->blocks = (keys + s->block_size - 1) / s->block_size;
    s->block = exactly(sizeof(int32_t) * s->blocks);
    s->count = 0;
    for (int i = 0; i < s->blocks; i++)
        if (below(2)) s->block[s->count++] = i;
}

static void drop(shape *s) {
    free((void *)s->query_rotation[1].table);
    free((void *)s->key_rotation[0].table);
    free(s->keys.key.data);
    free(s->keys.value.data);
    free(s->head.query.data);
    free(s->output.data);
    free(s->block);
}

static void make_packed(const trivium_kernels *k, const trivium_problem *p, trivium_keys *keys) {
    size_t chunks = (keys->key.rows + TRIVIUM_PACK_ROWS - 1) / TRIVIUM_PACK_ROWS;
    keys->packed = aligned(k->pack_bytes(p, keys->key.rows));
    keys->keys_state = memset(exactly(sizeof(uint32_t) * chunks), 0, sizeof(uint32_t) * chunks);
    keys->values_state = memset(exactly(sizeof(uint32_t) * chunks), 0, sizeof(uint32_t) * chunks);
}
static void drop_packed(trivium_keys *keys) { free(keys->packed), free(keys->keys_state), free(keys->values_state); }

// Results of one table: outputs, lse, columns, slashes, mass, means.
static double *run(shape *s, const trivium_kernels *k, int *count) {
    int keys = (int)s->keys.key.rows, rows = s->rows, dim = s->problem.value_dim;
    make_packed(k, &s->problem, &s->keys);
    if (rows % 2) k->pack(&s->problem, &s->keys, 0, keys); // else attend finds nothing packed
    void *scratch = aligned(k->scratch_bytes(&s->problem, keys));
    float *lse = exactly(4 * rows), *columns = exactly(4 * keys), *slashes = exactly(4 * keys);
    float *mass = exactly(sizeof(float) * rows * s->blocks), *mass_lse = exactly(4 * rows);
    int32_t *row = exactly(4 * rows), *place = exactly(4 * rows);
    int few = rows < TRIVIUM_REPRESENTATIVE_ROWS ? rows : TRIVIUM_REPRESENTATIVE_ROWS;
    for (int i = 0; i < rows; i++) row[i] = i, place[i] = rows - 1 - i;
    trivium_attend a = {.head = &s->head, .output = s->output, .lse = lse, .rows = rows, .last = keys, .sink = 0.5f};
    if (s->count) a.block = s->block, a.blocks = s->count, a.block_size = s->block_size;
    k->attend(&a, 1, scratch);
    if (!a.block) { // the same without packed keys, twice at once
        void *packed = s->keys.packed;
        trivium_attend two[2] = {a, a};
        s->keys.packed = NULL;
        k->attend(two, rows <= TRIVIUM_QUERY_ROWS / 2 ? 2 : 1, scratch);
        s->keys.packed = packed;
    }
    k->pack(&s->problem, &s->keys, 0, keys);
    *count = rows * dim + rows + 2 * keys + rows * s->blocks;
    double *all = malloc(sizeof(double) * *count), *to = all;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < dim; j++) *to++ = load_number(s->output.data, s->output.dtype, r * s->output.stride + j);
    for (int r = 0; r < rows; r++) *to++ = lse[r];
    trivium_representative r = {&s->head, rows - few, few, columns, slashes, lse};
    k->representative(&r, scratch);
    for (int j = 0; j < keys; j++) *to++ = columns[j];
    for (int j = 0; j < keys; j++) *to++ = slashes[j];
    trivium_row_mass m = {&s->head, row, place, rows, s->block_size, mass, mass_lse};
    trivium_row_mass more = {&s->head, row, place, rows, s->block_size, exactly(sizeof(float) * rows * s->blocks), exactly(4 * rows)};
    k->row_mass((trivium_row_mass[]){more, m}, 2, scratch);
    free(more.mass), free(more.lse);
    for (int i = 0; i < rows * s->blocks; i++) *to++ = mass[i];
    drop_packed(&s->keys), free(scratch), free(lse), free(columns), free(slashes), free(mass), free(mass_lse), free(row), free(place);
    return all;
}

// Scores of blocks of one table: squares of two, then columns. The problem has
// neither bands nor values.
static double *block_scores(shape *s, const trivium_kernels *k, int *count) {
    trivium_problem p = s->problem;
    trivium_band all = {1, INT64_MIN, INT64_MAX, 0, 0};
    p.band = &all, p.bands = 1, p.softcap = 0, p.half = 0, p.value_dim = 0, p.query_variants = 2, p.key_variants = 1, p.causal = 1;
    trivium_rotation none = {NULL, 0};
    trivium_keys keys[2];
    trivium_head heads[2];
    int rows = s->rows, n = (int)s->keys.key.rows, size = 1 + rows % 7, squares = (n + 1) / 2, blocks = (squares + size - 1) / size;
    for (int t = 0; t < 2; t++) {
        trivium_matrix key = s->keys.key, query = s->head.query;
        key.data = (char *)key.data + (n > t) * t * key.stride * dtype_bytes(key.dtype);
        key.rows = (n + 1 - t) / 2;
        query.data = (char *)query.data + (rows > 1 - t) * (1 - t) * query.stride * dtype_bytes(query.dtype);
        query.rows = (rows + t) / 2;
        key.stride *= 2, query.stride *= 2;
        keys[t] = (trivium_keys){key, key, &none, NULL};
        keys[t].value.cols = 0;
        make_packed(k, &p, &keys[t]);
        if (key.rows) k->pack(&p, &keys[t], 0, key.rows);
        heads[t] = (trivium_head){&p, &keys[t], &none, query, 3};
    }
    int row_blocks = (3 + (rows + 1) / 2 - 1) / size - 3 / size + 1;
    void *scratch = aligned(k->scratch_bytes(&p, 16 * (squares + blocks)));
    float *mass = exactly(sizeof(float) * row_blocks * blocks), *score = exactly(sizeof(float) * n);
    for (int i = 0; i < row_blocks * blocks; i++) mass[i] = 0;
    trivium_square_mass m = {heads, 2, 3, (rows + 1) / 2, size, mass};
    k->square_mass(&m, scratch);
    p.causal = 0, p.window = 0, p.query_variants = 1;
    int first = n / 3, last = squares;
    trivium_column_score c = {&heads[0], 0, heads[0].query.rows, first < last ? first : last, last, score};
    k->column_score(&c, scratch);
    p.value_dim = p.key_dim; // the keys are their own values
    keys[0].value = keys[0].key;
    drop_packed(&keys[0]), free(scratch);
    make_packed(k, &p, &keys[0]);
    k->pack(&p, &keys[0], 0, keys[0].key.rows);
    scratch = aligned(k->scratch_bytes(&p, squares));
    trivium_matrix out = {exactly(4 * rows * p.value_dim), rows, p.value_dim, p.value_dim, TRIVIUM_FLOAT32};
    for (int i = 0; i < rows * p.value_dim; i++) ((float *)out.data)[i] = 1;
    int32_t kept[2] = {first, first + 2};
    float *lse = exactly(4 * rows), *room = exactly(sizeof(float) * rows * (p.value_dim + 1));
    for (int i = 0; i < rows; i++) lse[i] = 0;
    int few = (int)heads[0].query.rows;
    trivium_rest rest = {&heads[0], out, lse, room, kept, 2, 0, few, c.first, c.last, 1};
    k->rest(&rest, scratch);
    *count = row_blocks * blocks + (int)(c.last - c.first) + few * (p.value_dim + 1);
    double *all_scores = malloc(sizeof(double) * (*count + 1)), *to = all_scores;
    for (int i = 0; i < few * p.value_dim; i++) *to++ = ((float *)out.data)[i];
    for (int i = 0; i < few; i++) *to++ = lse[i];
    free(out.data), free(lse), free(room);
    for (int i = 0; i < row_blocks * blocks; i++) *to++ = mass[i];
    for (int i = 0; i < c.last - c.first; i++) *to++ = score[i];
    drop_packed(&keys[0]), drop_packed(&keys[1]), free(scratch), free(mass), free(score);
    return all_scores;
}

static int differ(const shape *s, const char *table, const char *what, const double *got, const double *want, int count) {
    double limit = s->problem.dtype == TRIVIUM_FLOAT32 ? 1e-4 : 0.1;
    for (int j = 0; j < count; j++) {
        if (got[j] == want[j] || fabs(got[j] - want[j]) <= limit * fmax(1, fabs(want[j]))) continue;
        printf("%s: %s differ at %d of %d: %g, serial %g: ", table, what, j, count, got[j], want[j]);
        return 1;
    }
    return 0;
}

enum { PAIR = 2, RESULTS = 5 };

// Sums of two sources into some results of any dtype, and the sources' products:
// the same bytes as serial's.
static int sums(const trivium_kernels *k, const trivium_kernels *serial) {
    int n = 1 + below(3000), dtype = below(6), candidates = 1 + below(RESULTS), failed = 0;
    const void *ins[PAIR];
    void *outs[2][RESULTS], *scratch = aligned(k->sum_bytes), *own = aligned(k->difference_bytes + PAIR * TRIVIUM_DIFFERENCE_BYTES);
    int32_t in_dtypes[PAIR], out_dtypes[RESULTS];
    double weight[RESULTS * PAIR], product[2][PAIR * PAIR] = {0};
    for (int i = 0; i < PAIR; i++) {
        void *in = exactly((size_t)n * dtype_bytes(dtype));
        for (int j = 0; j < n; j++) store_number(in, dtype, j, normal());
        ins[i] = in, in_dtypes[i] = dtype;
    }
    for (int c = 0; c < candidates; c++) {
        out_dtypes[c] = below(6);
        for (int i = 0; i < PAIR; i++) weight[c * PAIR + i] = normal();
        for (int t = 0; t < 2; t++) outs[t][c] = exactly((size_t)n * dtype_bytes(out_dtypes[c]));
    }
    int wide = below(2);
    const trivium_kernels *of[2] = {serial, k};
    for (int t = 0; t < 2; t++) {
        int64_t bad[PAIR] = {0};
        trivium_sum s = {outs[t], ins, out_dtypes, in_dtypes, weight, bad, 0, n, candidates, PAIR, wide};
        of[t]->weighted_sum(&s, scratch);
        trivium_products p = {{ins, in_dtypes, bad, 0, n, PAIR, 0}, product[t]};
        of[t]->products(&p, own);
    }
    for (int c = 0; c < candidates; c++)
        if (memcmp(outs[0][c], outs[1][c], (size_t)n * dtype_bytes(out_dtypes[c]))) failed = printf("%s: sum %d of %d differs from serial's\n", k->name, c, candidates);
    if (memcmp(product[0], product[1], sizeof product[0])) failed = printf("%s: products of %d elements of dtype %d differ from serial's\n", k->name, n, dtype);
    float *mean = exactly(sizeof(float) * 5 * 37);
    trivium_pool p = {matrix(50, 37, below(3)), 5, 12, mean}; // positions 5 to 54: 5 blocks
    k->pool(&p);
    for (int i = 0; i < PAIR; i++) free((void *)ins[i]);
    for (int c = 0; c < candidates; c++) free(outs[0][c]), free(outs[1][c]);
    free(scratch), free(own), free(mean), free(p.rows.data);
    return failed != 0;
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    int cases = argc > 2 ? atoi(argv[2]) : 100, tables, failed = 0;
    const trivium_kernels *const *table = trivium_tables(&tables), *serial = NULL;
    for (int t = 0; t < tables; t++)
        if (table[t]->rank == 0) serial = table[t];
    for (int i = 0; i < cases; i++) {
        state = seed + i;
        shape s = {0};
        draw(&s);
        int count, scores;
        double *want = run(&s, serial, &count), *want_scores = block_scores(&s, serial, &scores);
        for (int t = 0; t < tables; t++) {
            if (!table[t]->supported()) continue;
            double *got = run(&s, table[t], &count), *got_scores = block_scores(&s, table[t], &scores);
            if (differ(&s, table[t]->name, "results", got, want, count) || differ(&s, table[t]->name, "block scores", got_scores, want_scores, scores)) {
                printf("seed %llu\n", (unsigned long long)(seed + i));
                failed = 1;
            }
            free(got), free(got_scores);
            if (table[t]->weighted_sum && sums(table[t], serial)) failed = 1;
        }
        free(want_scores);
        free(want);
        drop(&s);
    }
    for (int t = 0; t < tables; t++) printf("%s%s ", table[t]->name, table[t]->supported() ? "" : " (not on this machine)");
    printf("%d cases from seed %llu, %s\n", cases, (unsigned long long)seed, failed ? "FAILED" : "clean");
    return failed;
}
