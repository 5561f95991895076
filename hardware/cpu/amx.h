// Tiles of AMX, for the files of kernels that multiply with them.
static const struct __attribute__((packed)) {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} all_tiles = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

#define BEGIN_PRODUCTS() _tile_loadconfig(&all_tiles)
#define END_PRODUCTS() _tile_release()

// The compiler does not know that tile instructions read and write memory.
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

// Tiles 0 - 3 are the sums of c[32, 32]; stride in bytes.
INLINE void zero_2_2(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
INLINE void load_2_2(const float *c, long stride) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + 16, stride);
    _tile_loadd(2, c + 4 * stride, stride);
    _tile_loadd(3, c + 4 * stride + 16, stride);
}
INLINE void store_2_2(float *c, long stride) {
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 4 * stride, stride);
    _tile_stored(3, c + 4 * stride + 16, stride);
}
