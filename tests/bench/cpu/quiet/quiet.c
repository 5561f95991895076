// quiet COUNT prints so many processors, of different cores, whose AMX is fastest just now: what a
// product of tiles takes from registers alone, the median of 40 times. What each took goes to stderr.
//
//   gcc -O2 -o build/bench/quiet tests/bench/cpu/quiet/quiet.c
#define _GNU_SOURCE
#include <immintrin.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#pragma GCC target("amx-tile,amx-bf16")

enum { MOST = 1024, SAMPLES = 40, STEPS = 2000, PRODUCTS = 4, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };

typedef struct __attribute__((packed)) {
    unsigned char palette, start_row, reserved[14];
    unsigned short row_bytes[16];
    unsigned char rows[16];
} tile_config;

typedef struct {
    int processor, core;
    double ns;
} timing;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static int by_time(const void *x, const void *y) { return by_value(&((const timing *)x)->ns, &((const timing *)y)->ns); }

static int core_of(int processor) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/core_id", processor);
    FILE *file = fopen(path, "r");
    int core = processor; // each its own, if nothing is known
    if (!file) return core;
    if (fscanf(file, "%d", &core) != 1) core = processor;
    fclose(file);
    return core;
}

static double product_ns(void) {
    const tile_config config = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
    double ns[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        double start = now();
        for (int k = 0; k < STEPS; k++) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        ns[i] = (now() - start) / (STEPS * PRODUCTS);
    }
    _tile_release();
    qsort(ns, SAMPLES, sizeof *ns, by_value);
    return ns[SAMPLES / 2];
}

int main(int argc, char **argv) {
    int wanted = argc > 1 ? atoi(argv[1]) : 1, found = 0;
    if (!__builtin_cpu_supports("amx-bf16") || syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) {
        fprintf(stderr, "no AMX with bfloat16 here: run without --quiet\n");
        return 1;
    }
    timing times[MOST];
    for (int p = 0; p < MOST; p++) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(p, &one);
        if (sched_setaffinity(0, sizeof one, &one)) continue; // whatever the caller is bound to
        times[found++] = (timing){p, core_of(p), product_ns()};
        fprintf(stderr, "%d: %.1f ns\n", p, times[found - 1].ns);
    }
    qsort(times, found, sizeof *times, by_time);
    for (int i = 0, taken = 0; i < found && taken < wanted; i++) {
        int beside = 0;
        for (int j = 0; j < i; j++) beside |= times[j].core == times[i].core;
        if (beside) continue; // two of one core share its AMX
        printf("%d\n", times[i].processor);
        taken++;
    }
    return 0;
}
