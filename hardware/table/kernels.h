// The table of operations of an instruction set, and the structures they take.
//
// All memory is borrowed for the length of a call. Nothing here allocates: the
// caller brings scratch of scratch_bytes, 64-byte aligned, one for each thread.
// An operation that runs long looks at problem->cancel and returns early; what
// it wrote is then to be thrown away.
#ifndef TRIVIUM_KERNELS_H
#define TRIVIUM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { TRIVIUM_FLOAT32, TRIVIUM_BFLOAT16, TRIVIUM_FLOAT16, TRIVIUM_FLOAT64, TRIVIUM_FLOAT8_E4M3, TRIVIUM_FLOAT8_E5M2 };

// The keys of a packed chunk; chunks are packed independently of each other.
#define TRIVIUM_PACK_ROWS 128
// The most query rows of one attend or row_mass call.
#define TRIVIUM_QUERY_ROWS 128
// The most rows of one representative call: their exponentials at 16k keys, as
// float16, fill a second-level cache, and two such calls keep more threads busy
// than heads. Fewer rows read keys more often.
#define TRIVIUM_REPRESENTATIVE_ROWS 64
// The most calls of row_mass at once.
#define TRIVIUM_GROUP_HEADS 4

// Rows of one head: row r starts stride*r elements after data, columns are contiguous.
typedef struct {
    void *data;
    int64_t rows, stride;
    int32_t cols, dtype;
} trivium_matrix;

// The extra rotation of row r of a matrix: pairs of cosine and sine, one for
// each frequency, at table + r*step. Step 0: the same for all rows. NULL: none.
typedef struct {
    const float *table;
    int64_t step;
} trivium_rotation;

// Pairs of positions with low <= floor(m/chunk) - floor(n/chunk) < high are
// scored with the query in its variant number `query`, the key in `key`.
typedef struct {
    int64_t chunk, low, high;
    int32_t query, key;
} trivium_band;

// What all operations of a session share.
typedef struct {
    const trivium_band *band;   // cover every distance exactly once; high INT64_MAX: unbounded
    const int32_t *cancel;      // not 0: stop; written by another thread
    float scale, softcap;       // of the scores; softcap 0: none
    int64_t window;             // keys at distance >= window are not seen; 0: none
    int32_t causal, bands;
    int32_t key_dim, value_dim; // 1..256
    int32_t half, interleaved;  // rotary pairs (i, i+half), or (2i, 2i+1)
    int32_t query_variants, key_variants;
    int32_t dtype;              // of queries, keys and values where it is one, else float32
    int32_t high;               // products of float32 may be those of halves of bfloat16, to 2^-15 of them
} trivium_problem;

// What is known of the keys, or of the values, of a chunk of TRIVIUM_PACK_ROWS.
enum {
    TRIVIUM_UNPACKED,
    TRIVIUM_PACKING,   // some thread is at it
    TRIVIUM_PACKED,
    TRIVIUM_NOT_FINITE // packed, and a value of it is infinite or NaN
};

// One kv head. Row n is at position n.
typedef struct {
    trivium_matrix key, value;
    const trivium_rotation *rotation; // [key_variants]
    void *packed;                     // of pack_bytes, 64-byte aligned, for the kernels alone; NULL: attend
                                      // packs for itself what it looks at, which is for few rows
    uint32_t *keys_state, *values_state; // [chunks] of what is packed; at first TRIVIUM_UNPACKED
} trivium_keys;

// One query head. Row r is at position offset + r.
typedef struct {
    const trivium_problem *problem;
    const trivium_keys *keys;
    const trivium_rotation *rotation; // [query_variants]
    trivium_matrix query;
    int64_t offset;
} trivium_head;

// Rows [row, row+rows) of a head against the keys of the blocks
// block[0..blocks), or, where block is NULL, the keys [first, last).
typedef struct trivium_attend {
    const trivium_head *head;
    trivium_matrix output;      // as query; dtype of the query
    float *lse;                 // [query rows] natural log, the sink included; NULL: not wanted
    float *partial;             // not NULL: write here [rows, value_dim + 1] output and lse of these
                                // keys alone, without the sink, instead of output and lse
    const int32_t *block;
    int64_t blocks, block_size; // block_size a multiple of 16
    int64_t row, rows;
    int64_t first, last;        // first a multiple of TRIVIUM_PACK_ROWS
    float sink;                 // a logit; -INFINITY: none
    const struct trivium_attend *next; // what the thread will probably be called with next, in the first of
                                // the calls: its memory may be asked for early; NULL: not known
} trivium_attend;

// Rows [row, row+rows) of a head against all visible keys. columns[j] is the
// sum over rows of the softmax at key j; slashes[o] that over pairs at distance o.
typedef struct {
    const trivium_head *head;
    int64_t row, rows;
    float *columns, *slashes;   // [key rows], overwritten
    float *lse;                 // [rows] natural log, no sink
} trivium_representative;

// The rows listed in row[0..rows) against all visible keys; the result of row i
// goes to place[i].
typedef struct {
    const trivium_head *head;
    const int32_t *row, *place;
    int64_t rows, block_size;   // block_size a multiple of 16
    float *mass;                // [place, key blocks] softmax mass of each key block
    float *lse;                 // [place] natural log, no sink
} trivium_row_mass;

// Scores of squares: row r and key n are the squares of some tokens by some, and
// what they have to do with each other is the sum over parts of the products of
// the parts' rows; a row or key that a part lacks counts as zero. Part 0 has the
// most keys. Rows at positions [row, row+rows), at most TRIVIUM_QUERY_ROWS,
// against all visible keys; no bands, no softcap; query_variants is the number of
// parts.
typedef struct {
    const trivium_head *part;   // [parts], of one problem
    int32_t parts;
    int64_t row, rows;
    int64_t block_size;         // of rows and of keys, any
    float *mass;                // [row blocks from that of row on, key blocks] softmax mass, added to
} trivium_square_mass;

// Rows [row, row+rows), any number, against the keys [first, last): score[n -
// first] is the sum over rows of exp(logit - the largest logit of all).
typedef struct {
    const trivium_head *head;
    int64_t row, rows;
    int64_t first, last;
    float *score;
} trivium_column_score;

// Adds to output and lse of rows [row, row+rows), as attend wrote them, the
// attention to the keys [first, last) that are not in kept, each with `weight`
// added to its logit: with block means as keys, what the blocks that were left
// out may hold. Rows that saw no key stay as they are.
typedef struct {
    const trivium_head *head;
    trivium_matrix output;
    float *lse, *room;          // room: [rows, value_dim + 1]
    const int32_t *kept;        // [count] rising
    int64_t count, row, rows, first, last;
    float weight;
} trivium_rest;

// Means over rows by blocks of position; row r of m is at position offset + r.
typedef struct {
    trivium_matrix rows;
    int64_t offset, block_size;
    float *mean;                // [floor((offset+rows-1)/block_size) - floor(offset/block_size) + 1, cols]
} trivium_pool;

// out[c][i] = sum over s of weight[c*sources+s] * in[s][i] for i in
// [first, first+count), by fused multiply-adds in float32 (float64 when wide)
// in the order of s from 0, rounded once to the nearest even. Every instruction
// set gives the same bytes; NaN is the one without sign and payload.
typedef struct {
    void *const *out;
    const void *const *in;
    const int32_t *out_dtype, *in_dtype;
    const double *weight;       // [candidates, sources]; rounded to float32 unless wide
    int64_t *nonfinite;         // [sources], added to
    int64_t first, count;       // count at most TRIVIUM_SUM_TILE
    int32_t candidates, sources, wide;
} trivium_sum;
#define TRIVIUM_SUM_TILE 65536

// Some sources, less a base if there is one: d[s][i] = in[s][i] - in[sources][i]
// in float32, or in[s][i] rounded to float32.
typedef struct {
    const void *const *in;      // [sources], then the base
    const int32_t *in_dtype;
    int64_t *nonfinite;         // [sources], then of the base; added to
    int64_t first, count;       // elements; count at most TRIVIUM_SUM_TILE
    int32_t sources, based;
} trivium_differences;

// product[s*sources+r] += sum over i of d[s][i] * d[r][i], for r <= s alone.
// Products are exact in float64. Element i of the call is added to partial sum
// i mod 16; those are then added from 0 on: the same bytes everywhere.
typedef struct {
    trivium_differences of;
    double *product;
} trivium_products;

// Counts the magnitudes of a source whose bits from `known` up are those of
// prefix, by their next bits: counts[bits>>shift & (2^(known-shift) - 1)].
// All NaN have the magnitude 0x7fc00000.
typedef struct {
    int64_t *counts;
    uint32_t prefix;
    int32_t source, known, shift; // known 32: all
} trivium_walk;

typedef struct {
    trivium_differences of;
    const trivium_walk *walk;
    int32_t walks;
} trivium_magnitudes;

// out[i] = base[i] + scale * (sum over s of k[s][i]), over the sum of the weights
// of those that are not 0 when normalise, rounded once to the nearest even.
// k[s][i] is factor*weight[s] * d[s][i], or 0 where |d| is not in [low[s],
// high[s]), where the draw of the element is not below threshold, and, when
// consensus, where its sign is not that of their sum. In float64, fused, in the
// order of s. The draw is the upper 53 bits of mix(seed + mix(s<<48 + element+i)),
// with the finaliser of splitmix64.
typedef struct {
    trivium_differences of;     // based
    void *out;
    const double *weight;
    const float *low, *high;
    double factor, scale;
    uint64_t seed, threshold;   // threshold 2^53: everything is kept
    int64_t element;            // the number of element 0 for drawing
    int32_t out_dtype, consensus, normalise;
} trivium_sparse;

// The scratch of the three above, and of the three of variances: difference_bytes,
// and this many bytes more for each source.
#define TRIVIUM_DIFFERENCE_BYTES 8192

// What follows is in float64 from the differences on, which are those of inputs
// rounded to float32; products are rounded before they are added. Results are
// rounded to float32 and then to out_dtype; no result is -0.

// out[i] = base[i] + scale * (sum over s of k[s][i]), over the sum of the weights
// of those that are not 0 when normalise. k[s][i] is weight[s] * (d[s][i] /
// chance[rank]), or 0 where the draw of the element, over 2^53, is not below
// chance[rank], and, when consensus, where its sign is not that of their sum. The
// rank is that of |d| in its row from the smallest, equal ones by their place, NaN
// before all.
typedef struct {
    trivium_differences of;     // based; first and count multiples of row, count otherwise unbounded
    void *out;
    const double *weight;
    const double *chance;       // [row]
    char *room;                 // TRIVIUM_RANKED_BYTES(sources) for each element of a row
    double scale;
    uint64_t seed;
    int64_t element;            // the number of element 0 for drawing
    int64_t row;                // below 2^32
    int32_t out_dtype, consensus, normalise;
} trivium_ranked;
#define TRIVIUM_RANKED_BYTES(sources) (40 + 8 * (size_t)(sources))

// The variance of element i is the mean over s of (d[s][i] - their mean)^2,
// rounded to float32; a mean is the sum, in the order of s, of what was divided
// by the number of sources before.

// Counts variances as trivium_walk does magnitudes; its source does not matter.
typedef struct {
    trivium_differences of;     // based, as below
    trivium_walk walk;
} trivium_variances;

// square[s] += d[s][i]^2 for those i whose variance is not below limit, in order.
typedef struct {
    trivium_differences of;
    double *square;
    float limit;
} trivium_squares;

// out[i] = base[i] + (sum of weight[s] * d[s][i]) / (sum of weight[s]) over those
// d that are not 0 and have the sign of the sum of all; base[i] where the variance
// is below limit or NaN, or the weights are 0.
typedef struct {
    trivium_differences of;
    void *out;
    const double *weight;
    float limit;
    int32_t out_dtype;
} trivium_majority;

// Levels of tiles: rows are query blocks, columns key blocks; row i sees the
// columns [low[i], high[i]). A probe is the exact mass, by column, of a query in a
// row; it counts around that row, with weight[reach + its row - the tile's], at
// the columns that its row sees. A tile scores (own + around + probability/2) /
// 2.5: own is the mean of the probes in its row, around the weighted mean of all
// that count (0 if none does; own, where its row has no probe), probability the softmax
// of similarity over what its row sees. Without parts probability alone is the score. The
// level is the number of thresholds that the score reaches, 0 for NaN. With several
// parts there is a choice of all probes but those of each part, and then of all.
typedef struct {
    const int32_t *low, *high;  // [rows]
    const float *similarity;    // [rows, columns]
    const float *mass;          // [probes, columns], 0 where nothing is seen; then TRIVIUM_LEVEL_COLUMNS that may be read
    const int32_t *row, *part;  // [probes] rows do not fall; parts are below `parts`
    const float *weight;        // [2*reach + 1] positive
    const float *threshold;     // [levels] rising, positive
    uint8_t *level;             // [choices, rows, columns]; what a row does not see is left as it is
    int64_t rows, columns, probes;
    int32_t parts, reach, levels; // parts at most TRIVIUM_LEVEL_PARTS, levels at most 254
} trivium_levels;
#define TRIVIUM_LEVEL_COLUMNS 64
#define TRIVIUM_LEVEL_PARTS 4
static inline int trivium_choices(const trivium_levels *c) { return c->parts > 1 ? c->parts + 1 : 1; }

// One table. pool and weighted_sum may be NULL: the next table down has them.
typedef struct trivium_kernels {
    const char *name;
    int32_t rank;               // of the tables that are supported, the highest is the best
    int (*supported)(void);     // by this machine
    // The packed form of a kv head with `rows` keys, opaque to the caller.
    size_t (*pack_bytes)(const trivium_problem *, int64_t rows);
    // Packs the keys of rows [first, first+rows), all but those that are packed; first a
    // multiple of TRIVIUM_PACK_ROWS, and rows too, unless they are the last. To be called
    // before anything scores them; attend and rest pack by themselves the keys and values
    // that they look at, and wait for those that another thread is packing.
    void (*pack)(const trivium_problem *, const trivium_keys *, int64_t first, int64_t rows);
    // Scratch for any operation; keys: the most rows of any trivium_keys, and for
    // square_mass at least 16 times the key blocks.
    size_t (*scratch_bytes)(const trivium_problem *, int64_t keys);
    // Several calls at once share keys, rows and blocks, and have no more than
    // TRIVIUM_QUERY_ROWS rows in all: the heads of a group.
    void (*attend)(const trivium_attend *, int32_t count, void *scratch);
    void (*representative)(const trivium_representative *, void *scratch);
    // Several calls at once, up to TRIVIUM_GROUP_HEADS, are heads of a group: they
    // share keys, and differ in heads and results alone.
    void (*row_mass)(const trivium_row_mass *, int32_t count, void *scratch);
    void (*pool)(const trivium_pool *);
    // Scratch of sum_bytes.
    void (*weighted_sum)(const trivium_sum *, void *scratch);
    size_t sum_bytes;
    // All three with weighted_sum, or none. Scratch as said at TRIVIUM_DIFFERENCE_BYTES.
    void (*products)(const trivium_products *, void *scratch);
    void (*magnitudes)(const trivium_magnitudes *, void *scratch);
    void (*sparse)(const trivium_sparse *, void *scratch);
    size_t difference_bytes;
    void (*square_mass)(const trivium_square_mass *, void *scratch);
    void (*column_score)(const trivium_column_score *, void *scratch);
    void (*rest)(const trivium_rest *, void *scratch);
    // All four with weighted_sum, or none. Scratch as of products.
    void (*ranked)(const trivium_ranked *, void *scratch);
    void (*variances)(const trivium_variances *, void *scratch);
    void (*squares)(const trivium_squares *, void *scratch);
    void (*majority)(const trivium_majority *, void *scratch);
    // Whether a problem is multiplied in halves of bfloat16, to 2^-15 of each product;
    // NULL: none is. Keys are then packed in another way.
    int (*halves)(const trivium_problem *);
    // Beside pool: product[i*keys + j] = row i of a, [rows, dim], times row j of b, [keys, dim].
    void (*dots)(const float *a, int64_t rows, const float *b, int64_t keys, int64_t dim, float *product);
    // Beside pool.
    void (*tile_levels)(const trivium_levels *);
} trivium_kernels;

// Puts a table on the list of this build: an instruction set is one file.
#define TRIVIUM_REGISTER(table) \
    __attribute__((used, section("trivium_isa"))) static const trivium_kernels *const trivium_registered_##table = &table

#endif
