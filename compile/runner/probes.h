/* When each call of a network started, and when the last one ended: kernels measured where they run.
 *
 * For measuring only; networks that ship have no probes. The moments are those of the latest run.
 */
#ifndef BIGNAS_PROBES_H
#define BIGNAS_PROBES_H

#define _POSIX_C_SOURCE 199309L

#include <stddef.h>
#include <time.h>

#define BIGNAS_PROBES(count)                                                                      \
    static double bignas_moments_ns[count];                                                       \
    size_t bignas_probe_count(void) { return count; }                                             \
    const double *bignas_probe_moments(void) { return bignas_moments_ns; }                        \
    static inline void bignas_probe(int number) {                                                 \
        struct timespec time;                                                                     \
        clock_gettime(CLOCK_MONOTONIC, &time);                                                    \
        bignas_moments_ns[number] = (double)time.tv_sec * 1e9 + (double)time.tv_nsec;             \
    }

#endif
