/* A network compiled by bignas, as a shared library without any run-time dependency but the C library.
 *
 * All values are float32. The input is [channels, height, width]; the output is one value a class.
 * `workspace` holds the activations between kernels: bignas_workspace_bytes() bytes, aligned to 64.
 * Calls with different workspaces may run at the same time.
 */
#ifndef BIGNAS_H
#define BIGNAS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BIGNAS_ABI 1
#define BIGNAS_ALIGNMENT 64

int bignas_abi(void);
size_t bignas_input_floats(void);
size_t bignas_output_floats(void);
size_t bignas_workspace_bytes(void);

/* Run the network once, on the calling thread, of whose stack it takes up to 1 MB, and those that were
 * started for it. The first call may take longer: it prepares weights, in memory of the library. Returns
 * 0, or -1 when the workspace is not aligned. */
int bignas_run(const float *input, float *output, void *workspace);

/* Time `count` samples of `inner` runs each; nanoseconds[i] is the mean time of one run of sample i.
 * Returns what bignas_run returns. */
int bignas_time(const float *input, float *output, void *workspace, int inner, int count,
                double *nanoseconds);

#ifdef __cplusplus
}
#endif

#endif
