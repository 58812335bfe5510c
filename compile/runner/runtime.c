/* What every bundle needs beside its kernels: checks of the workspace, and a timer. */
#define _POSIX_C_SOURCE 199309L
#include "bignas.h"

#include <stdint.h>
#include <time.h>

void bignas_network(const float *input, float *output, float *memory);

int bignas_abi(void) { return BIGNAS_ABI; }

int bignas_run(const float *input, float *output, void *workspace) {
    if ((uintptr_t)workspace % BIGNAS_ALIGNMENT) return -1;
    bignas_network(input, output, (float *)workspace);
    return 0;
}

static double now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int bignas_time(const float *input, float *output, void *workspace, int inner, int count,
                double *nanoseconds) {
    for (int sample = 0; sample < count; sample++) {
        double start = now_ns();
        for (int i = 0; i < inner; i++) {
            int status = bignas_run(input, output, workspace);
            if (status) return status;
        }
        nanoseconds[sample] = (now_ns() - start) / inner;
    }
    return 0;
}
