#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "numbers.h"
#include "support.h"

// The linker's list of what TRIVIUM_REGISTER put down.
extern const trivium_kernels *const __start_trivium_isa[], *const __stop_trivium_isa[];

const trivium_kernels *const *trivium_tables(int *count) {
    *count = (int)(__stop_trivium_isa - __start_trivium_isa);
    return __start_trivium_isa;
}

// Huge pages: 2 MiB a fault rather than 4 KiB, which would cost as much as the packing.
enum { HUGE_PAGE = 2 << 20 };

void *trivium_alloc(size_t bytes) {
    void *memory = NULL;
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    if (posix_memalign(&memory, alignment, bytes ? bytes : 1)) return NULL;
    if (alignment == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

void trivium_free(void *memory) { free(memory); }

static double apply_rule(const trivium_rule *r, int64_t m) {
    if (r->modulo > 0) m %= r->modulo;
    if (r->group > 1) m = m / r->group - (m % r->group < 0);
    double position = r->scale * (double)m + r->offset;
    return r->limit > 0 && position > r->limit ? r->limit : position;
}

void trivium_rotation_rows(const trivium_rule *r, int64_t position, int64_t rows, float *table) {
    for (int64_t m = position; m < position + rows; m++, table += 2 * r->half) {
        double to = apply_rule(r, m);
        for (int i = 0; i < r->half; i++) {
            double sine, cosine;
            sincos(r->inv_freq[i] * to - r->applied[i] * (double)m, &sine, &cosine);
            table[2 * i] = (float)cosine;
            table[2 * i + 1] = (float)sine;
        }
    }
}

void trivium_merge(const trivium_attend *a, int64_t parts) {
    int dim = a->head->problem->value_dim;
    int64_t stride = dim + 1, part_stride = a->rows * stride;
    for (int64_t r = 0; r < a->rows; r++) {
        const float *part = a->partial + r * stride;
        double top = -INFINITY, sum = 0, out[256] = {0};
        int empty = 1;
        for (int64_t i = 0; i < parts; i++) {
            double lse = part[i * part_stride + dim];
            empty &= lse == -INFINITY;
            if (lse > top) top = lse; // passes over NaN, which the sum does not
        }
        top = fmax(top, a->sink);
        for (int64_t i = 0; i < parts && !empty; i++) {
            double weight = exp(part[i * part_stride + dim] - top);
            sum += weight;
            for (int j = 0; j < dim; j++) out[j] += weight * part[i * part_stride + j];
        }
        if (!empty) sum += exp(a->sink - top);
        int64_t row = a->row + r;
        for (int j = 0; j < dim; j++)
            store_number(a->output.data, a->output.dtype, row * a->output.stride + j, empty ? 0 : out[j] / sum);
        if (a->lse) a->lse[row] = empty ? -INFINITY : (float)(top + log(sum));
    }
}
