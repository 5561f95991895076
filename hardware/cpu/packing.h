// Which thread packs a chunk: the first that needs it. What others then read is the same,
// whoever packed it.
#ifndef TRIVIUM_PACKING_H
#define TRIVIUM_PACKING_H

#include <sched.h>
#include "kernels.h"

// Whether the caller is to pack the chunk, and to say so by packing_done.
static inline int packing_begins(uint32_t *state) {
    uint32_t expected = TRIVIUM_UNPACKED;
    if (__atomic_load_n(state, __ATOMIC_RELAXED) != TRIVIUM_UNPACKED) return 0;
    return __atomic_compare_exchange_n(state, &expected, TRIVIUM_PACKING, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
static inline void packing_done(uint32_t *state, uint32_t result) { __atomic_store_n(state, result, __ATOMIC_RELEASE); }

static inline uint32_t packing_state(const uint32_t *state) { return __atomic_load_n(state, __ATOMIC_ACQUIRE); }

// Packing a chunk takes some microseconds; a thread that lost its processor may take longer.
static inline void await_packing(const uint32_t *state) {
    while (packing_state(state) == TRIVIUM_PACKING) sched_yield();
}

#endif
