// What packing found out about each chunk of TILE keys, behind the packed
// numbers: included by what packs, which defines numbers_bytes.
//
// A flag says that some value of the chunk is infinite or NaN. The weight of a
// key that a row does not see is zero, and zero times such a value is not: see
// multiply_seen_values.
static inline uint32_t *chunk_flag(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    return (uint32_t *)((char *)k->packed + numbers_bytes(p, k->key.rows)) + n / TILE;
}

static size_t NAME(pack_bytes)(const trivium_problem *p, int64_t rows) {
    return numbers_bytes(p, rows) + sizeof(uint32_t) * (size_t)(round_up(rows, TILE) / TILE);
}

