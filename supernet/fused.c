/* Parts of training on a CPU that torch computes far below the machine's speed. This file: batch
 * norm with residual sum and activation in one go, and what the files share that are compiled
 * together with it, fused_pointwise.c, fused_depthwise.c and fused_dense.c.
 *
 * Tensors are float32, channels last. Batch norms alone and depthwise convolutions alone also take
 * images and gradients of bfloat16. Work is cut into pieces of fixed extent whose partial sums are
 * added in a fixed order, so that results do not depend on the number of threads.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PARTS 16
#ifdef __AVX512F__
#define LANES 16 /* floats a vector; the compiler splits vectors the processor does not have */
#else
#define LANES 8
#endif
#define BLOCK 4096 /* floats of a block of pixels that stays in the first-level cache */
#define INLINE static inline __attribute__((always_inline))
#define PARALLEL _Pragma("omp parallel for schedule(dynamic) num_threads((int)threads)")

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef enum { IDENTITY, RELU, RELU6, HARD_SWISH, SWISH } activation;
typedef enum { FLOAT32, BFLOAT16 } storage; /* of activations; arithmetic is float32 */

#define BY_KIND(call) \
    switch (kind) { \
    case RELU: call(RELU); break; \
    case RELU6: call(RELU6); break; \
    case HARD_SWISH: call(HARD_SWISH); break; \
    case SWISH: call(SWISH); break; \
    default: call(IDENTITY); \
    }

/* STORED(storage, further) of the storage at hand, where STORED is defined before. */
#define BY_STORAGE(further) \
    do { \
        if (stored == BFLOAT16) STORED(BFLOAT16, further); else STORED(FLOAT32, further); \
    } while (0)

INLINE float read_at(const void *from, int64_t i, storage stored) {
    if (stored == FLOAT32) return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE vector slice_at(const void *from, int64_t i, storage stored) {
    if (stored == FLOAT32) return *(const vector *)((const float *)from + i);
    halves read = *(const halves *)((const uint16_t *)from + i);
    return (vector)(__builtin_convertvector(read, words) << 16);
}

/* Rounds to nearest, ties to even. */
INLINE void write_at(void *to, int64_t i, float value, storage stored) {
    if (stored == FLOAT32) {
        ((float *)to)[i] = value;
    } else {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* As write_at, of a whole slice. */
INLINE void write_slice(void *to, int64_t i, vector slice, storage stored) {
    if (stored == FLOAT32) {
        *(vector *)((float *)to + i) = slice;
    } else {
        words bits = (words)slice;
        bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        *(halves *)((uint16_t *)to + i) = __builtin_convertvector(bits, halves);
    }
}

INLINE const void *from_at(const void *from, int64_t i, storage stored) {
    return (const char *)from + i * (stored == FLOAT32 ? 4 : 2);
}

INLINE void *to_at(void *to, int64_t i, storage stored) {
    return (char *)to + i * (stored == FLOAT32 ? 4 : 2);
}

/* e^x as Cephes' expf has it (S. L. Moshier), without branches, so that compilers vectorise it: the
 * power of two next to it times a polynomial. */
INLINE float exponential(float x) {
    x = x < -87 ? -87 : x > 87 ? 87 : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds */
    float r = x - n * 0.693359375f + n * 2.12194440e-4f, p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1) * power;
}

INLINE float sigmoid(float u) { return 1 / (1 + exponential(-u)); }

INLINE float activate(float u, activation kind) {
    switch (kind) {
    case RELU: return u > 0 ? u : 0;
    case RELU6: return u < 0 ? 0 : u > 6 ? 6 : u;
    case HARD_SWISH: return u <= -3 ? 0 : u >= 3 ? u : u * (u + 3) * (1.0f / 6);
    case SWISH: return u * sigmoid(u);
    default: return u;
    }
}

INLINE float slope(float u, activation kind) {
    switch (kind) {
    case RELU: return u > 0 ? 1 : 0;
    case RELU6: return u > 0 && u < 6 ? 1 : 0;
    case HARD_SWISH: return u <= -3 ? 0 : u >= 3 ? 1 : (2 * u + 3) * (1.0f / 6);
    case SWISH: return sigmoid(u) * (1 + u * (1 - sigmoid(u)));
    default: return 1;
    }
}

typedef int32_t mask __attribute__((vector_size(4 * LANES), may_alias));

INLINE vector load(const float *from) { return *(const vector *)from; }
INLINE vector chosen(mask where, vector one, vector other) {
    return (vector)((where & (mask)one) | (~where & (mask)other));
}

/* As `sigmoid`. */
INLINE vector sigmoid_slice(vector u) {
    vector x = -u, zero = {};
    x = chosen(x > 87, zero + 87, chosen(x < -87, zero - 87, x));
    vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    vector r = x - n * 0.693359375f + n * 2.12194440e-4f, p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vector power = (vector)((__builtin_convertvector(n, mask) + 127) << 23);
    return 1 / (1 + (p * r * r + r + 1) * power);
}

/* `activate` and `slope` of a slice. */
INLINE vector activate_slice(vector u, activation kind) {
    vector zero = {}, inner;
    switch (kind) {
    case RELU: return (vector)((u > 0) & (mask)u);
    case RELU6: return chosen(u > 6, zero + 6, (vector)((u > 0) & (mask)u));
    case HARD_SWISH:
        inner = u * (u + 3) * (1.0f / 6);
        return chosen(u >= 3, u, (vector)((u > -3) & (mask)inner));
    case SWISH: return u * sigmoid_slice(u);
    default: return u;
    }
}

INLINE vector slope_slice(vector d, vector u, activation kind) {
    vector s;
    switch (kind) {
    case RELU: return (vector)((u > 0) & (mask)d);
    case RELU6: return (vector)((u > 0) & (u < 6) & (mask)d);
    case HARD_SWISH: return chosen(u >= 3, d, (vector)((u > -3) & (mask)(d * (2 * u + 3) * (1.0f / 6))));
    case SWISH:
        s = sigmoid_slice(u);
        return d * s * (1 + u * (1 - s));
    default: return d;
    }
}

/* Few channels make short loops: as many pixels as divide the tensor count as one, `wide`. */
INLINE int64_t joined(int64_t pixels, int64_t channels) {
    int64_t pixels_a_row = 1;
    while (pixels_a_row * channels < 128 && pixels % (2 * pixels_a_row) == 0) pixels_a_row *= 2;
    return pixels_a_row;
}

static void spread(const float *values, float *wide, int64_t channels, int64_t width) {
    for (int64_t i = 0; i < width; i += channels) memcpy(wide + i, values, 4 * channels);
}

/* Rows r + k of `count`, with k below 4: sums that take turns do not wait for each other. */
#define BY_FOURS(body) \
    for (int64_t r = 0; r < count; r += 4) { \
        if (r + 4 <= count) { \
            _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) body; \
        } else { \
            _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) if (r + k < count) body; \
        } \
    }

/* Add a block [count, width] of rows `pitch` floats apart, `before` rows after the first one, to the
 * mean and the sum of squared deviations in totals [2 * width]; scratch [2 * width]. The block is
 * summed in two passes and merged by the formula of Chan et al. (1979). */
INLINE void add_stored_block(const void *block, int64_t pitch, int64_t count, int64_t width,
                             int64_t before, float *restrict scratch, double *restrict totals,
                             storage stored) {
    float *restrict sum = scratch, *restrict deviation = scratch + width;
    int64_t sliced = width - width % LANES;
    for (int64_t i = 0; i < sliced; i += LANES) {
        vector one[4] = {{0}}, other[4] = {{0}};
        BY_FOURS(one[k] += slice_at(block, (r + k) * pitch + i, stored))
        vector middle = (one[0] + one[1] + one[2] + one[3]) / (float)count;
        BY_FOURS({
            vector d = slice_at(block, (r + k) * pitch + i, stored) - middle;
            other[k] += d * d;
        })
        *(vector *)(sum + i) = middle;
        *(vector *)(deviation + i) = other[0] + other[1] + other[2] + other[3];
    }
    for (int64_t i = sliced; i < width; i++) {
        float one = 0, other = 0;
        for (int64_t r = 0; r < count; r++) one += read_at(block, r * pitch + i, stored);
        one /= (float)count;
        for (int64_t r = 0; r < count; r++) {
            float d = read_at(block, r * pitch + i, stored) - one;
            other += d * d;
        }
        sum[i] = one;
        deviation[i] = other;
    }
    double after = (double)(before + count), share = (double)count / after;
    for (int64_t i = 0; i < width; i++) {
        double shift = sum[i] - totals[i];
        totals[i] += shift * share;
        totals[width + i] += deviation[i] + shift * shift * (double)before * share;
    }
}

static void add_block(const float *block, int64_t pitch, int64_t count, int64_t width, int64_t before,
                      float *restrict scratch, double *restrict totals) {
    add_stored_block(block, pitch, count, width, before, scratch, totals, FLOAT32);
}

/* Mean and biased variance of each channel, of parts [2 * width] with so many rows each; a row has
 * each channel width / channels times. */
static void merge_parts(const double *totals, const int64_t *rows, int64_t parts, int64_t width,
                        int64_t channels, float *mean, float *variance) {
    int64_t all = 0;
    for (int64_t part = 0; part < parts; part++) all += rows[part];
    double pixels = (double)(all * (width / channels));
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (int64_t part = 0; part < parts; part++)
            for (int64_t i = c; i < width; i += channels)
                sum += (double)rows[part] * totals[part * 2 * width + i];
        double average = sum / pixels;
        for (int64_t part = 0; part < parts; part++)
            for (int64_t i = c; i < width; i += channels) {
                double shift = totals[part * 2 * width + i] - average;
                square += totals[(part * 2 + 1) * width + i] + (double)rows[part] * shift * shift;
            }
        mean[c] = (float)average;
        variance[c] = (float)(square / pixels);
    }
}

/* Mean and biased variance of each channel of y [pixels, channels]. Returns 0, or 1 when there is
 * no memory. */
int moments(const void *y, int64_t stored, int64_t pixels, int64_t channels, float *mean,
            float *variance, int64_t threads) {
    int64_t width = channels * joined(pixels, channels), rows = pixels * channels / width;
    int64_t step = BLOCK / width ? BLOCK / width : 1, counts[PARTS];
    double *totals = calloc(PARTS * 2 * width, sizeof *totals);
    float *scratch = malloc(PARTS * 2 * width * sizeof *scratch);
    if (!totals || !scratch) {
        free(totals), free(scratch);
        return 1;
    }
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        int64_t begin = rows * part / PARTS, end = rows * (part + 1) / PARTS;
        counts[part] = end - begin;
        for (int64_t at = begin; at < end; at += step) {
            int64_t count = end - at < step ? end - at : step;
#define STORED(S, _) \
    add_stored_block(from_at(y, at * width, S), width, count, width, at - begin, \
                     scratch + part * 2 * width, totals + part * 2 * width, S)
            BY_STORAGE();
#undef STORED
        }
    }
    merge_parts(totals, counts, PARTS, width, channels, mean, variance);
    free(totals), free(scratch);
    return 0;
}

INLINE void normalize_rows(const void *restrict y, const void *restrict residual, void *restrict z,
                           const float *restrict factor, const float *restrict offset, int64_t rows,
                           int64_t width, activation kind, storage stored) {
    for (int64_t at = 0; at < rows * width; at += width)
        if (residual)
            for (int64_t i = 0; i < width; i++) {
                float u = read_at(y, at + i, stored) * factor[i] + offset[i];
                write_at(z, at + i, activate(u + read_at(residual, at + i, stored), kind), stored);
            }
        else
            for (int64_t i = 0; i < width; i++) {
                float u = read_at(y, at + i, stored) * factor[i] + offset[i];
                write_at(z, at + i, activate(u, kind), stored);
            }
}

/* z = activation(y * factor + offset + residual); y, residual (or null), z: [pixels, channels]. */
int normalize(const void *y, const void *residual, void *z, int64_t stored, const float *factor,
              const float *offset, int64_t pixels, int64_t channels, int64_t kind, int64_t threads) {
    int64_t width = channels * joined(pixels, channels), rows = pixels * channels / width;
    float *wide = malloc(2 * width * sizeof *wide);
    if (!wide) return 1;
    spread(factor, wide, channels, width);
    spread(offset, wide + width, channels, width);
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        int64_t begin = rows * part / PARTS, count = rows * (part + 1) / PARTS - begin;
#define STORED(S, K) \
    normalize_rows(from_at(y, begin * width, S), residual ? from_at(residual, begin * width, S) : 0, \
                   to_at(z, begin * width, S), wide, wide + width, count, width, K, S)
        BY_KIND(BY_STORAGE)
#undef STORED
    }
    free(wide);
    return 0;
}

/* sums [2 * width] = those of g and g * (y - mean) over `count` rows, g = dz * slope. */
INLINE void gradient_sums(const void *y, const void *dz, const float *wide, float *sums,
                          int64_t count, int64_t width, activation kind, storage stored) {
    const float *factor = wide, *offset = wide + width, *mean = wide + 2 * width;
    int64_t sliced = width - width % LANES;
    for (int64_t i = 0; i < sliced; i += LANES) {
        vector by = load(factor + i), plus = load(offset + i), middle = load(mean + i);
        vector sum[4] = {{0}}, cross[4] = {{0}};
        BY_FOURS({
            vector u = slice_at(y, (r + k) * width + i, stored);
            vector g = slope_slice(slice_at(dz, (r + k) * width + i, stored), u * by + plus, kind);
            sum[k] += g;
            cross[k] += g * (u - middle);
        })
        *(vector *)(sums + i) = sum[0] + sum[1] + sum[2] + sum[3];
        *(vector *)(sums + width + i) = cross[0] + cross[1] + cross[2] + cross[3];
    }
    for (int64_t i = sliced; i < width; i++) {
        sums[i] = sums[width + i] = 0;
        for (int64_t r = 0; r < count; r++) {
            float u = read_at(y, r * width + i, stored);
            float g = read_at(dz, r * width + i, stored) * slope(u * factor[i] + offset[i], kind);
            sums[i] += g;
            sums[width + i] += g * (u - mean[i]);
        }
    }
}

INLINE void gradient_rows(const void *restrict y, const void *restrict dz, void *restrict dy,
                          const float *restrict wide, int64_t rows, int64_t width, activation kind,
                          storage stored) {
    const float *factor = wide, *offset = wide + width, *mean = wide + 2 * width;
    const float *across = wide + 3 * width, *constant = wide + 4 * width;
    for (int64_t at = 0; at < rows * width; at += width)
        for (int64_t i = 0; i < width; i++) {
            float u = read_at(y, at + i, stored);
            float g = read_at(dz, at + i, stored) * slope(u * factor[i] + offset[i], kind);
            float linked = factor[i] * g + across[i] * (u - mean[i]) + constant[i];
            write_at(dy, at + i, linked, stored);
        }
}

/* The gradients of z = activation((y - mean) * inverse * scale + shift), the moments being those of
 * y: dy [pixels, channels], dscale and dshift [channels]; inverse = 1 / standard deviation. */
int normalize_backward(const void *y, const void *dz, void *dy, int64_t stored, const float *mean,
                       const float *inverse, const float *scale, const float *shift, float *dscale,
                       float *dshift, int64_t pixels, int64_t channels, int64_t kind, int64_t threads) {
    int64_t width = channels * joined(pixels, channels), rows = pixels * channels / width;
    int64_t step = BLOCK / width ? BLOCK / width : 1;
    float *wide = malloc((5 + 2 * PARTS) * width * sizeof *wide);
    double *merged = calloc(PARTS * 2 * width, sizeof *merged);
    if (!wide || !merged) {
        free(wide), free(merged);
        return 1;
    }
    for (int64_t i = 0; i < width; i++) {
        int64_t c = i % channels;
        wide[i] = scale[c] * inverse[c];
        wide[width + i] = shift[c] - mean[c] * wide[i];
        wide[2 * width + i] = mean[c];
    }
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        float *sums = wide + (5 + 2 * part) * width;
        double *total = merged + part * 2 * width;
        int64_t begin = rows * part / PARTS, end = rows * (part + 1) / PARTS;
        for (int64_t at = begin; at < end; at += step) {
            int64_t count = end - at < step ? end - at : step;
#define STORED(S, K) \
    gradient_sums(from_at(y, at * width, S), from_at(dz, at * width, S), wide, sums, count, width, K, S)
            BY_KIND(BY_STORAGE)
#undef STORED
            for (int64_t i = 0; i < 2 * width; i++) total[i] += sums[i];
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, cross = 0;
        for (int part = 0; part < PARTS; part++)
            for (int64_t i = c; i < width; i += channels) {
                sum += merged[part * 2 * width + i];
                cross += merged[(part * 2 + 1) * width + i];
            }
        dshift[c] = (float)sum;
        dscale[c] = (float)(cross * inverse[c]);
        for (int64_t i = c; i < width; i += channels) {
            wide[3 * width + i] = (float)(-cross * scale[c] * inverse[c] * inverse[c] * inverse[c]
                                          / (double)pixels);
            wide[4 * width + i] = (float)(-sum * wide[i] / (double)pixels);
        }
    }
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        int64_t begin = rows * part / PARTS, count = rows * (part + 1) / PARTS - begin;
#define STORED(S, K) \
    gradient_rows(from_at(y, begin * width, S), from_at(dz, begin * width, S), \
                  to_at(dy, begin * width, S), wide, count, width, K, S)
        BY_KIND(BY_STORAGE)
#undef STORED
    }
    free(wide), free(merged);
    return 0;
}

/* In a chain of convolutions the batch norms between them are not computed by themselves. What is
 * stored is the output y of a convolution and
 *   norm [4, channels]: mean, inverse (1 / standard deviation), factor, offset; the next convolution
 *     takes activation(y * factor + offset);
 * and on the way back g, the gradient of y * factor + offset, and
 *   link [4, channels]: factor, mean, across, constant; the gradient of y is
 *     factor * g + across * (y - mean) + constant.
 */
enum { MEAN, INVERSE, FACTOR, OFFSET };
enum { LINK_FACTOR, LINK_MEAN, LINK_ACROSS, LINK_CONSTANT };

/* The norm of an output with these moments, which are in `norm` as mean and variance. */
static void finish_norm(float *norm, const float *scale, const float *shift, float epsilon,
                        int64_t channels) {
    for (int64_t c = 0; c < channels; c++) {
        float mean = norm[MEAN * channels + c];
        float inverse = 1 / sqrtf(norm[INVERSE * channels + c] + epsilon);
        norm[INVERSE * channels + c] = inverse;
        norm[FACTOR * channels + c] = scale[c] * inverse;
        norm[OFFSET * channels + c] = shift[c] - mean * scale[c] * inverse;
    }
}

/* The gradients of scale and shift and the link, from the sums of g and of g * (y - mean) of one
 * channel over all pixels. */
static void finish_link(const float *norm, double sum, double cross, int64_t pixels, int64_t c,
                        int64_t channels, float *link, float *dscale, float *dshift) {
    float inverse = norm[INVERSE * channels + c], factor = norm[FACTOR * channels + c];
    dshift[c] = (float)sum;
    dscale[c] = (float)(cross * inverse);
    link[LINK_FACTOR * channels + c] = factor;
    link[LINK_MEAN * channels + c] = norm[MEAN * channels + c];
    link[LINK_ACROSS * channels + c] = (float)(-cross * factor * inverse * inverse / (double)pixels);
    link[LINK_CONSTANT * channels + c] = (float)(-sum * factor / (double)pixels);
}

/* z [rows, width], rows z_pitch floats apart, = activation(x * factor + offset). */
INLINE void activated_rows(const float *restrict x, float *restrict z, int64_t z_pitch,
                           const float *restrict norm, int64_t rows, int64_t width, activation kind) {
    const float *factor = norm + FACTOR * width, *offset = norm + OFFSET * width;
    for (int64_t r = 0; r < rows; r++, x += width, z += z_pitch)
        for (int64_t i = 0; i < width; i++) z[i] = activate(x[i] * factor[i] + offset[i], kind);
}

/* dy [rows, width] = factor * g + across * (y - mean) + constant. */
INLINE void linked_rows(const float *restrict g, const float *restrict y, float *restrict dy,
                        const float *restrict link, int64_t rows, int64_t width) {
    const float *factor = link + LINK_FACTOR * width, *mean = link + LINK_MEAN * width;
    const float *across = link + LINK_ACROSS * width, *constant = link + LINK_CONSTANT * width;
    for (int64_t r = 0; r < rows; r++, g += width, y += width, dy += width)
        for (int64_t i = 0; i < width; i++)
            dy[i] = factor[i] * g[i] + across[i] * (y[i] - mean[i]) + constant[i];
}

/* g [rows, width] = d * slope(x * factor + offset), rows of d d_pitch floats apart;
 * sums [2 * width] += g and g * (x - mean). */
INLINE void sloped_rows(const float *restrict x, const float *restrict d, int64_t d_pitch,
                        float *restrict g, const float *restrict norm, float *restrict sums,
                        int64_t rows, int64_t width, activation kind) {
    const float *mean = norm + MEAN * width, *factor = norm + FACTOR * width;
    const float *offset = norm + OFFSET * width;
    for (int64_t r = 0; r < rows; r++, x += width, d += d_pitch, g += width)
        for (int64_t i = 0; i < width; i++) {
            float one = d[i] * slope(x[i] * factor[i] + offset[i], kind);
            g[i] = one;
            sums[i] += one;
            sums[width + i] += one * (x[i] - mean[i]);
        }
}
