// AMX's tile registers in memory, so that machines without them can run its kernels: for tests alone
// (-DTRIVIUM_EMULATED_TILES), slow. A product is rounded as the processor does it: `vdpbf16ps` has the same
// order of sums and treats what is not normal alike. Tiles have 16 rows of 64 bytes.
static _Thread_local uint32_t emulated_tile[8][16][16];

static inline void emulated_load(int tile, const void *from, long stride) {
    for (int r = 0; r < 16; r++) memcpy(emulated_tile[tile][r], (const char *)from + r * stride, 64);
}
static inline void emulated_store(int tile, void *to, long stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)to + r * stride, emulated_tile[tile][r], 64);
}
static inline void emulated_product(int c, int a, int b) {
    for (int r = 0; r < 16; r++) {
        __m512 sum = _mm512_loadu_ps(emulated_tile[c][r]);
        for (int k = 0; k < 16; k++)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)emulated_tile[a][r][k]), (__m512bh)_mm512_loadu_si512(emulated_tile[b][k]));
        _mm512_storeu_ps(emulated_tile[c][r], sum);
    }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define _tile_zero(tile) memset(emulated_tile[tile], 0, sizeof emulated_tile[tile])
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(c, a, b) emulated_product(c, a, b)
