/* NumPy's array files, as far as bundles use them: float32, C order. */
#ifndef BIGNAS_NPY_H
#define BIGNAS_NPY_H

#include "system.h"

struct array {
    const float *values;
    size_t rows;    /* first dimension */
    size_t columns; /* product of the others */
};

/* Returns 0, or -1 when the file is no such array, or is shorter or longer than it says. */
int npy_read(struct bytes file, struct array *array);

#endif
