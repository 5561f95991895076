// Sums of differences that are drawn by their rank in a row, for every
// instruction set, included by sums.h. Same bytes as serial.
//
// A row is sorted by the highest 16 bits (24 for long rows) of what its magnitudes
// have of their own: two passes by bytes that leave little for an insertion sort,
// since a row is seldom alike in so many. Where it is, which only numbers made for
// it are, the sort goes over all bytes. Rows of 1280 differences of bfloat16, for
// each element and source, on a Xeon with AMX: 43 ns by passes over all bits in Go, 9 - 11
// here, half of them for the sort. Moving pairs from both ends at a time, and passes of
// 9 bits, gained nothing.
typedef struct {
    double *term, *chance;      // [sources, row], [row]
    uint64_t *key, *pair, *moved;
    float *base;
} ranked_room;

static ranked_room room_of(const trivium_ranked *r) {
    int64_t n = r->row, sources = r->of.sources;
    double *at = (double *)r->room;
    uint64_t *keys = (uint64_t *)(at + (sources + 1) * n);
    return (ranked_room){at, at + sources * n, keys, keys + n, keys + 2 * n, (float *)(keys + 3 * n)};
}

typedef struct {
    uint64_t least, most, any; // of the bits of the magnitudes that are not 0; any: those that some has
} key_range;

#define INFINITE_BITS ((uint64_t)0x7ff << 52)

// Writes the differences of a row of one source, and the bits of their magnitudes.
static key_range load_ranked(double *restrict to, const ranked_room *room, difference_scratch *s, const trivium_ranked *r, int source, int64_t first) {
    uint64_t least = ~(uint64_t)0, most = 0, any = 0;
    for (int64_t at = 0; at < r->row; at += STEP) {
        int n = (int)min_i64(STEP, r->row - at);
        load_values(s->x, s, &r->of, source, first + at, n);
        const float *restrict base = room->base + at;
        double *restrict d = to + at;
        uint64_t *restrict key = room->key + at;
        for (int i = 0; i < n; i++) {
            double x = (double)s->x[i] - (double)base[i];
            uint64_t bits;
            memcpy(&bits, &x, sizeof bits);
            d[i] = x;
            key[i] = bits & ~((uint64_t)1 << 63);
        }
        for (int i = 0; i < n; i++) {
            uint64_t number = key[i] <= INFINITE_BITS ? key[i] : 0, less = number - 1; // 0 becomes the largest
            any |= number;
            most = number > most ? number : most;
            least = less < least ? less : least;
        }
    }
    least++;
    return (key_range){least, most, any};
}

static int width_of(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// Makes keys dense: NaN 0, zero 1, and then from the least on, without the low bits
// that no magnitude has. Gives the bits of the largest.
static int make_dense(uint64_t *restrict key, key_range range, int64_t n) {
    int low = range.any ? __builtin_ctzll(range.any) : 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = key[i], dense = ((bits - range.least) >> low) + 2;
        dense = bits ? dense : 1;
        key[i] = bits <= INFINITE_BITS ? dense : 0;
    }
    return range.any ? width_of(((range.most - range.least) >> low) + 2) : 1;
}

enum { BYTE_VALUES = 256, FEW = 32, LONG_ROW = 4096, INSERTIONS = 8 };

// Moves pairs to where their byte at shift puts them, which stay in order otherwise.
static void move_by_byte(uint64_t *restrict to, const uint64_t *restrict from, int shift, uint32_t *count, int64_t n) {
    uint32_t at = 0;
    for (int b = 0; b < BYTE_VALUES; b++) {
        uint32_t here = count[b];
        count[b] = at;
        at += here;
    }
    for (int64_t k = 0; k < n; k++) to[count[from[k] >> shift & (BYTE_VALUES - 1)]++] = from[k];
}

// A pair is the highest 32 bits of a key, over its place. Where those are not all
// of the key, the key decides between equal ones.
static inline int precedes(uint64_t a, uint64_t b, const uint64_t *key, int whole) {
    if (whole || (a ^ b) >> 32) return a < b;
    uint64_t of_a = key[(uint32_t)a], of_b = key[(uint32_t)b];
    return of_a < of_b || (of_a == of_b && a < b);
}

// 0: more is out of order than was to be expected.
static int insert_sorted(uint64_t *pair, const uint64_t *key, int whole, int64_t n) {
    int64_t left = n <= FEW ? FEW * FEW : INSERTIONS * n;
    for (int64_t k = 1; k < n; k++) {
        uint64_t x = pair[k];
        int64_t to = k;
        for (; to > 0 && precedes(x, pair[to - 1], key, whole); to--) pair[to] = pair[to - 1];
        pair[to] = x;
        if ((left -= k - to) < 0) return 0;
    }
    return 1;
}

// Sorts places by all bytes of their keys.
static uint64_t *sort_places(uint64_t *place, uint64_t *moved, const uint64_t *key, int width, int64_t n) {
    for (int64_t k = 0; k < n; k++) place[k] = (uint64_t)k;
    for (int shift = 0; shift < width; shift += 8) {
        uint32_t count[BYTE_VALUES] = {0}, at = 0;
        for (int64_t k = 0; k < n; k++) count[key[k] >> shift & (BYTE_VALUES - 1)]++;
        for (int b = 0; b < BYTE_VALUES; b++) {
            uint32_t here = count[b];
            count[b] = at;
            at += here;
        }
        for (int64_t k = 0; k < n; k++) moved[count[key[place[k]] >> shift & (BYTE_VALUES - 1)]++] = place[k];
        uint64_t *swap = place;
        place = moved;
        moved = swap;
    }
    return place;
}

// The places of dense keys from the smallest, in the low halves of what it gives.
static const uint64_t *sort_row(const ranked_room *room, int width, int64_t n) {
    const uint64_t *restrict key = room->key;
    uint64_t *pair = room->pair, *moved = room->moved;
    int cut = width > 32 ? width - 32 : 0, passes = n <= FEW ? 0 : n <= LONG_ROW ? 2 : 3;
    int lowest = width - cut > 8 * passes ? width - cut - 8 * passes : 0;
    for (int64_t i = 0; i < n; i++) pair[i] = key[i] >> cut << 32 | (uint64_t)i;
    uint32_t count[3][BYTE_VALUES] = {{0}};
    for (int64_t i = 0; i < n && passes; i++) {
        uint64_t bits = pair[i] >> 32 >> lowest;
        count[0][bits & (BYTE_VALUES - 1)]++;
        count[1][bits >> 8 & (BYTE_VALUES - 1)]++;
        if (passes > 2) count[2][bits >> 16 & (BYTE_VALUES - 1)]++;
    }
    for (int p = 0; p < passes; p++) {
        move_by_byte(moved, pair, 32 + lowest + 8 * p, count[p], n);
        uint64_t *swap = pair;
        pair = moved;
        moved = swap;
    }
    return insert_sorted(pair, key, !cut, n) ? pair : sort_places(room->pair, room->moved, key, width, n);
}

// A draw over 2^53. In two halves, which lie in the last bits of large numbers: AVX2
// does not convert 64 bits.
INLINE double uniform_of(uint64_t drawn) {
    uint64_t high = drawn >> 32 | 0x4530000000000000, low = (drawn & 0xffffffff) | 0x4330000000000000;
    double a, b;
    memcpy(&a, &high, sizeof a);
    memcpy(&b, &low, sizeof b);
    return (a - (0x1p84 + 0x1p52) + b) * 0x1p-53;
}

// Leaves of a row of differences what the draw keeps, over its chance, times weight.
static void draw_ranked(double *restrict d, const double *restrict chance, difference_scratch *s, const trivium_ranked *r, int source, int64_t first) {
    double weight = r->weight[source];
    for (int64_t at = 0; at < r->row; at += STEP, d += STEP, chance += STEP) {
        int n = (int)min_i64(STEP, r->row - at);
        uint64_t element = ((uint64_t)source << 48) + (uint64_t)(r->element + first + at);
        for (int i = 0; i < n; i++) s->drawn[i] = mix(r->seed + mix(element + (uint64_t)i)) >> 11;
        for (int i = 0; i < n; i++) d[i] = weight * (d[i] / chance[i]);
        for (int i = 0; i < n; i++) d[i] = uniform_of(s->drawn[i]) < chance[i] ? d[i] : 0;
    }
}

static void add_terms(difference_scratch *s, const trivium_ranked *r, const double *term, int n) {
    double *restrict elected = s->elected, *restrict sum = s->sum.wide, *restrict total = s->weight;
    int consensus = r->consensus;
    memset(elected, 0, sizeof s->elected);
    for (int a = 0; a < r->of.sources; a++)
        for (int i = 0; i < n; i++) elected[i] += term[a * r->row + i];
    if (!consensus && !r->normalise) {
        memcpy(sum, elected, sizeof s->elected);
        return;
    }
    memset(sum, 0, sizeof s->elected);
    memset(total, 0, sizeof s->weight);
    for (int a = 0; a < r->of.sources; a++) {
        const double *restrict k = term + a * r->row;
        double weight = r->weight[a];
        for (int i = 0; i < n; i++) {
            int agreed = (k[i] != 0) & (!consensus | ((k[i] > 0) == (elected[i] >= 0)));
            sum[i] += agreed ? k[i] : 0; // sums are never -0
            total[i] += agreed ? weight : 0;
        }
    }
    for (int i = 0; i < n && r->normalise; i++) sum[i] /= total[i] != 0 ? total[i] : 1;
}

static void NAME(ranked)(const trivium_ranked *r, void *scratch) {
    difference_scratch *s = scratch;
    ranked_room room = room_of(r);
    for (int64_t first = r->of.first; first < r->of.first + r->of.count; first += r->row) {
        for (int64_t at = 0; at < r->row; at += STEP) {
            int n = (int)min_i64(STEP, r->row - at);
            load_base(s, &r->of, first + at, n);
            memcpy(room.base + at, s->base, sizeof(float) * n);
        }
        for (int a = 0; a < r->of.sources; a++) {
            double *d = room.term + a * r->row;
            key_range range = load_ranked(d, &room, s, r, a, first);
            const uint64_t *order = sort_row(&room, make_dense(room.key, range, r->row), r->row);
            for (int64_t k = 0; k < r->row; k++) room.chance[(uint32_t)order[k]] = r->chance[k];
            draw_ranked(d, room.chance, s, r, a, first);
        }
        for (int64_t at = 0; at < r->row; at += STEP) {
            int n = (int)min_i64(STEP, r->row - at);
            add_terms(s, r, room.term + at, n);
            store_above_base(s, room.base + at, r->out, r->out_dtype, r->scale, first + at, n);
        }
    }
}
