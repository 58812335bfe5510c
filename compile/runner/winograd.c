/* Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4: the
 * matrices G of sections 4.1 and 4.3. A patch of weights is G w G^T. */
#include "winograd.h"

enum { WINDOW = 3, MOST_PATCH = 6 };
enum { UNPREPARED, UNDER_WAY, READY };

static const double of_2[][WINDOW] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
static const double of_4[][WINDOW] = {
    {1 / 4.0, 0, 0},
    {-1 / 6.0, -1 / 6.0, -1 / 6.0},
    {-1 / 6.0, 1 / 6.0, -1 / 6.0},
    {1 / 24.0, 1 / 12.0, 1 / 6.0},
    {1 / 24.0, -1 / 12.0, 1 / 6.0},
    {0, 0, 1},
};

static double product(const double *row, double a, double b, double c) {
    return row[0] * a + row[1] * b + row[2] * c;
}

static void transform(const struct winograd_weights *one) {
    const double(*matrix)[WINDOW] = one->side == 2 ? of_2 : of_4;
    int patch = one->side + WINDOW - 1;
    size_t n = one->values;
    for (size_t i = 0; i < n; i++) {
        const float *w = one->stored + i;
        double half[MOST_PATCH][WINDOW];
        for (int y = 0; y < patch; y++)
            for (int x = 0; x < WINDOW; x++)
                half[y][x] = product(matrix[y], w[x * n], w[(WINDOW + x) * n], w[(2 * WINDOW + x) * n]);
        for (int y = 0; y < patch; y++)
            for (int x = 0; x < patch; x++)
                one->transformed[(size_t)(y * patch + x) * n + i] =
                    (float)product(matrix[x], half[y][0], half[y][1], half[y][2]);
    }
}

void winograd_prepare(int *state, const struct winograd_weights *all, int count) {
    if (__atomic_load_n(state, __ATOMIC_ACQUIRE) == READY) return;
    int expected = UNPREPARED;
    if (__atomic_compare_exchange_n(state, &expected, UNDER_WAY, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < count; i++) transform(&all[i]);
        __atomic_store_n(state, READY, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(state, __ATOMIC_ACQUIRE) != READY) {
    }
}
