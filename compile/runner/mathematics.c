/* The mathematical functions that kernels call, for programs that link no C library.
 *
 * Computed in double precision from series whose error is far below float32's: results are right to
 * about one unit in the last place. All are weak, as in system.c.
 */
#include <stdint.h>

#define WEAK __attribute__((weak))

static const double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
static const double HALF_PI_HIGH = 1.57079632673412561417, HALF_PI_LOW = 6.07710050650619224932e-11;
static const double WHOLE_FROM = 4503599627370496.0; /* from 2^52 on there are no fractions */

union bits {
    double number;
    uint64_t word;
};

static double magnitude(double x) { return x < 0 ? -x : x; }

static double truncated(double x) {
    return magnitude(x) < WHOLE_FROM ? (double)(int64_t)x : x; /* not a number: as it is */
}

static double floored(double x) {
    double whole = truncated(x);
    return whole > x ? whole - 1 : whole;
}

/* Halfway cases go to the even neighbour. */
static double nearest(double x) {
    double below = floored(x), rest = x - below;
    if (rest != 0.5) return rest < 0.5 ? below : below + 1;
    return floored(below / 2) * 2 == below ? below : below + 1;
}

static float signed_as(double x, float source) {
    return __builtin_copysignf((float)x, source); /* keeps the sign of a zero */
}

static double exponential(double x) {
    if (x != x) return x;
    if (x > 700) return __builtin_inf();
    if (x < -700) return 0;
    double power = nearest(x * 1.4426950408889634);
    double rest = x - power * LN2_HIGH - power * LN2_LOW, sum = 1;
    for (int i = 11; i > 0; i--) sum = 1 + sum * rest / i;
    union bits scale = {.word = (uint64_t)((int64_t)power + 1023) << 52};
    return sum * scale.number;
}

/* `x` is no denormal number: no float32 is one as a double. */
static double logarithm(double x) {
    if (x < 0) return __builtin_nan("");
    if (x == 0) return -__builtin_inf();
    union bits bits = {.number = x};
    int power = (int)(bits.word >> 52) - 1023;
    if (power == 1024) return x; /* infinite, or not a number */
    bits.word = (bits.word & 0xfffffffffffff) | (uint64_t)1023 << 52;
    if (bits.number > 1.4142135623730951) bits.number /= 2, power++;
    double ratio = (bits.number - 1) / (bits.number + 1), square = ratio * ratio, sum = 0;
    for (int i = 17; i > 0; i -= 2) sum = sum * square + 1.0 / i;
    return 2 * ratio * sum + power * LN2_HIGH + power * LN2_LOW;
}

static double sine(double x) {
    double square = x * x, sum = 1;
    for (int i = 14; i > 0; i -= 2) sum = 1 - sum * square / (i * (i + 1));
    return sum * x;
}

static double cosine(double x) {
    double square = x * x, sum = 1;
    for (int i = 15; i > 0; i -= 2) sum = 1 - sum * square / (i * (i + 1));
    return sum;
}

/* The sine of x, `quarters` of a turn further. */
static double circular(double x, int quarters) {
    if (!(magnitude(x) < 1e9)) return magnitude(x) < __builtin_inf() ? 0 : __builtin_nan("");
    double turns = nearest(x / (HALF_PI_HIGH + HALF_PI_LOW));
    double rest = x - turns * HALF_PI_HIGH - turns * HALF_PI_LOW;
    int quarter = (int)(((int64_t)turns + quarters) & 3);
    double value = quarter & 1 ? cosine(rest) : sine(rest);
    return quarter & 2 ? -value : value;
}

/* Chebyshev fit of erfc, relative error below 1.2e-7: W. Press et al., Numerical Recipes, 6.2. */
static double complement(double x) {
    static const double fit[] = {0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
                                 -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223};
    double place = 1 / (1 + 0.5 * x), sum = 0;
    for (unsigned i = 0; i < sizeof fit / sizeof *fit; i++) sum = sum * place + fit[i];
    return place * exponential(sum - x * x);
}

WEAK float expf(float x) { return (float)exponential(x); }
WEAK float logf(float x) { return (float)logarithm(x); }
WEAK float sinf(float x) { return x == 0 ? x : (float)circular(x, 0); }
WEAK float cosf(float x) { return (float)circular(x, 1); }

WEAK float erff(float x) {
    double size = magnitude(x);
    if (size > 1) return signed_as(size < 6 ? 1 - complement(size) : 1, x);
    double square = size * size, sum = 0; /* Maclaurin series; not a number comes here too */
    double term = 1.1283791670955126 * size;
    for (int i = 0; i < 14; i++) {
        sum += term / (2 * i + 1);
        term *= -square / (i + 1);
    }
    return signed_as(sum, x);
}

WEAK float powf(float x, float y) {
    double base = x, exponent = y;
    if (exponent == 0 || base == 1) return 1;
    if (base != base || exponent != exponent) return x + y;
    int whole = truncated(exponent) == exponent;
    int odd = whole && floored(exponent / 2) * 2 != exponent;
    int infinite = magnitude(exponent) == __builtin_inf();
    if (infinite && magnitude(base) == 1) return 1;
    if (base < 0 && !whole && base != -__builtin_inf()) return __builtin_nanf("");
    double value = exponential(exponent * logarithm(magnitude(base)));
    return odd ? signed_as(value, x) : (float)value;
}

WEAK float floorf(float x) { return signed_as(floored(x), x); }
WEAK float ceilf(float x) { return signed_as(-floored(-(double)x), x); }
WEAK float truncf(float x) { return signed_as(truncated(x), x); }
WEAK float rintf(float x) { return signed_as(nearest(x), x); }
WEAK float nearbyintf(float x) { return rintf(x); }
WEAK float roundf(float x) { return signed_as(floored(magnitude(x) + 0.5), x); }
