// Values as AMX wants them: pairs of keys, included by what packs them.

// Writes two rows of up to 32 columns as those of two panels: [2 panels, 16 columns, 2 rows],
// the second `panel` elements behind the first, or not at all.
INLINE void store_pairs(uint16_t *to, int64_t panel, __m512i even, __m512i odd, int both) {
    // Words of the first row go to even places.
    _Alignas(64) static const uint16_t places[2][2 * LANES] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, _mm512_load_si512(places[0]), odd));
    if (both) _mm512_storeu_si512(to + panel, _mm512_permutex2var_epi16(even, _mm512_load_si512(places[1]), odd));
}
