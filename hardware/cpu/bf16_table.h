// The table of an instruction set that multiplies bfloat16: problems that are
// all bfloat16 are its own, any other those of other_table, or, where keys need not
// be packed, of attending_table. Included after tiles.h.
static int is_bf16(const trivium_problem *p) { return p->dtype == TRIVIUM_BFLOAT16; }

static size_t pack_bytes_any(const trivium_problem *p, int64_t rows) {
    return is_bf16(p) ? NAME(pack_bytes)(p, rows) : other_table(p)->pack_bytes(p, rows);
}
static void pack_any(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    is_bf16(p) ? NAME(pack)(p, k, first, rows) : other_table(p)->pack(p, k, first, rows);
}
static size_t scratch_bytes_any(const trivium_problem *p, int64_t keys) {
    return is_bf16(p) ? NAME(scratch_bytes)(p, keys) : other_scratch_bytes(p, keys);
}
static void attend_any(const trivium_attend *a, int32_t count, void *scratch) {
    is_bf16(a->head->problem) ? NAME(attend)(a, count, scratch) : attending_table(a->head)->attend(a, count, scratch);
}
static void representative_any(const trivium_representative *r, void *scratch) {
    is_bf16(r->head->problem) ? NAME(representative)(r, scratch) : other_table(r->head->problem)->representative(r, scratch);
}
static void row_mass_any(const trivium_row_mass *r, int32_t count, void *scratch) {
    is_bf16(r->head->problem) ? NAME(row_mass)(r, count, scratch) : other_table(r->head->problem)->row_mass(r, count, scratch);
}
static void square_mass_any(const trivium_square_mass *s, void *scratch) {
    is_bf16(s->part->problem) ? NAME(square_mass)(s, scratch) : other_table(s->part->problem)->square_mass(s, scratch);
}
static void column_score_any(const trivium_column_score *s, void *scratch) {
    is_bf16(s->head->problem) ? NAME(column_score)(s, scratch) : other_table(s->head->problem)->column_score(s, scratch);
}
static void rest_any(const trivium_rest *r, void *scratch) {
    is_bf16(r->head->problem) ? NAME(rest)(r, scratch) : other_table(r->head->problem)->rest(r, scratch);
}

#define BF16_TABLE(isa, order)                     \
    const trivium_kernels trivium_kernels_##isa = { \
        .name = #isa,                              \
        .rank = order,                             \
        .supported = supported_##isa,              \
        .pack_bytes = pack_bytes_any,              \
        .pack = pack_any,                          \
        .scratch_bytes = scratch_bytes_any,        \
        .attend = attend_any,                      \
        .representative = representative_any,      \
        .row_mass = row_mass_any,                  \
        .square_mass = square_mass_any,            \
        .column_score = column_score_any,          \
        .rest = rest_any,                          \
        .halves = IN_HALVES,                       \
    };                                             \
    TRIVIUM_REGISTER(trivium_kernels_##isa)
