/* Weights of convolutions by Winograd's algorithm: stored as they are, transformed before the first run.
 * Transformed ones are 16/9 or 4 times as many. */
#ifndef BIGNAS_WINOGRAD_H
#define BIGNAS_WINOGRAD_H

#include <stddef.h>

/* Weights of a 3x3 window: `values` of each position of the window, position by position, line by line;
 * transformed to as many of each position of a patch of side + 2 by side + 2. */
struct winograd_weights {
    const float *stored;
    float *transformed;
    size_t values;
    int side; /* of a tile of outputs, 2 or 4 */
};

/* Transform all of them, once for each *state, which begins as 0; when this returns they are ready,
 * whichever thread began. */
void winograd_prepare(int *state, const struct winograd_weights *all, int count);

#endif
