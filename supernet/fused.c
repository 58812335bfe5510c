/* The parts of training on a CPU that torch computes far below the machine's speed: batch norm
 * with residual sum and activation in one go, and the gradients of depthwise convolutions.
 *
 * Tensors are float32, channels last. Work is cut into PARTS pieces of fixed extent whose partial
 * sums are added in a fixed order, so that results do not depend on the number of threads.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PARTS 16
#define LANES 16   /* floats a vector; the compiler splits vectors the processor does not have */
#define BLOCK 4096 /* floats of a block of pixels that stays in the first-level cache */
#define INLINE static inline __attribute__((always_inline))
#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads((int)threads)")

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef enum { IDENTITY, RELU, RELU6, HARD_SWISH } activation;

INLINE float activate(float u, activation kind) {
    switch (kind) {
    case RELU: return u > 0 ? u : 0;
    case RELU6: return u < 0 ? 0 : u > 6 ? 6 : u;
    case HARD_SWISH: return u <= -3 ? 0 : u >= 3 ? u : u * (u + 3) * (1.0f / 6);
    default: return u;
    }
}

INLINE float slope(float u, activation kind) {
    switch (kind) {
    case RELU: return u > 0 ? 1 : 0;
    case RELU6: return u > 0 && u < 6 ? 1 : 0;
    case HARD_SWISH: return u <= -3 ? 0 : u >= 3 ? 1 : (2 * u + 3) * (1.0f / 6);
    default: return 1;
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

/* Mean and biased variance of each channel of y [pixels, channels]. Returns 0, or 1 when there is
 * no memory. Blocks are summed in two passes and merged by the formula of Chan et al. (1979). */
int moments(const float *y, int64_t pixels, int64_t channels, float *mean, float *variance,
            int64_t threads) {
    int64_t width = channels * joined(pixels, channels), rows = pixels * channels / width;
    int64_t step = BLOCK / width ? BLOCK / width : 1;
    double *merged = calloc(PARTS * 2 * width, sizeof *merged);
    float *scratch = malloc(PARTS * 2 * width * sizeof *scratch);
    if (!merged || !scratch) {
        free(merged), free(scratch);
        return 1;
    }
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        double *total = merged + part * 2 * width, *square = total + width;
        float *sum = scratch + part * 2 * width, *deviation = sum + width;
        int64_t begin = rows * part / PARTS, end = rows * (part + 1) / PARTS;
        for (int64_t at = begin; at < end; at += step) {
            int64_t count = end - at < step ? end - at : step;
            const float *block = y + at * width;
            memset(sum, 0, 2 * width * sizeof *sum);
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = 0; i < width; i++) sum[i] += block[r * width + i];
            for (int64_t i = 0; i < width; i++) sum[i] /= (float)count;
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = 0; i < width; i++) {
                    float d = block[r * width + i] - sum[i];
                    deviation[i] += d * d;
                }
            double before = (double)(at - begin), now = (double)count, after = before + now;
            for (int64_t i = 0; i < width; i++) {
                double shift = sum[i] - total[i];
                total[i] += shift * now / after;
                square[i] += deviation[i] + shift * shift * before * now / after;
            }
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (int part = 0; part < PARTS; part++) {
            double count = (double)(rows * (part + 1) / PARTS - rows * part / PARTS);
            for (int64_t i = c; i < width; i += channels) sum += count * merged[part * 2 * width + i];
        }
        double average = sum / (double)pixels;
        for (int part = 0; part < PARTS; part++) {
            double count = (double)(rows * (part + 1) / PARTS - rows * part / PARTS);
            for (int64_t i = c; i < width; i += channels) {
                double shift = merged[part * 2 * width + i] - average;
                square += merged[(part * 2 + 1) * width + i] + count * shift * shift;
            }
        }
        mean[c] = (float)average;
        variance[c] = (float)(square / (double)pixels);
    }
    free(merged), free(scratch);
    return 0;
}

INLINE void normalize_rows(const float *restrict y, const float *restrict residual,
                           float *restrict z, const float *restrict factor,
                           const float *restrict offset, int64_t rows, int64_t width, activation kind) {
    for (int64_t r = 0; r < rows; r++, y += width, z += width) {
        if (residual) {
            for (int64_t i = 0; i < width; i++)
                z[i] = activate(y[i] * factor[i] + offset[i] + residual[i], kind);
            residual += width;
        } else {
            for (int64_t i = 0; i < width; i++) z[i] = activate(y[i] * factor[i] + offset[i], kind);
        }
    }
}

/* z = activation(y * factor + offset + residual); y, residual (or null), z: [pixels, channels]. */
int normalize(const float *y, const float *residual, float *z, const float *factor,
              const float *offset, int64_t pixels, int64_t channels, int64_t kind, int64_t threads) {
    int64_t width = channels * joined(pixels, channels), rows = pixels * channels / width;
    float *wide = malloc(2 * width * sizeof *wide);
    if (!wide) return 1;
    spread(factor, wide, channels, width);
    spread(offset, wide + width, channels, width);
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        int64_t begin = rows * part / PARTS, count = rows * (part + 1) / PARTS - begin;
        const float *from = y + begin * width, *add = residual ? residual + begin * width : 0;
        float *to = z + begin * width;
        switch (kind) {
        case RELU: normalize_rows(from, add, to, wide, wide + width, count, width, RELU); break;
        case RELU6: normalize_rows(from, add, to, wide, wide + width, count, width, RELU6); break;
        case HARD_SWISH:
            normalize_rows(from, add, to, wide, wide + width, count, width, HARD_SWISH);
            break;
        default: normalize_rows(from, add, to, wide, wide + width, count, width, IDENTITY);
        }
    }
    free(wide);
    return 0;
}

INLINE void gradient_sums(const float *restrict y, const float *restrict dz,
                          const float *restrict wide, float *restrict sums,
                          int64_t rows, int64_t width, activation kind) {
    const float *factor = wide, *offset = wide + width, *mean = wide + 2 * width;
    for (int64_t r = 0; r < rows; r++, y += width, dz += width)
        for (int64_t i = 0; i < width; i++) {
            float g = dz[i] * slope(y[i] * factor[i] + offset[i], kind);
            sums[i] += g;
            sums[width + i] += g * (y[i] - mean[i]);
        }
}

INLINE void gradient_rows(const float *restrict y, const float *restrict dz, float *restrict dy,
                          const float *restrict wide,
                          int64_t rows, int64_t width, activation kind) {
    const float *factor = wide, *offset = wide + width, *mean = wide + 2 * width;
    const float *across = wide + 3 * width, *constant = wide + 4 * width;
    for (int64_t r = 0; r < rows; r++, y += width, dz += width, dy += width)
        for (int64_t i = 0; i < width; i++) {
            float g = dz[i] * slope(y[i] * factor[i] + offset[i], kind);
            dy[i] = factor[i] * g + across[i] * (y[i] - mean[i]) + constant[i];
        }
}

#define BY_KIND(call) \
    switch (kind) { \
    case RELU: call(RELU); break; \
    case RELU6: call(RELU6); break; \
    case HARD_SWISH: call(HARD_SWISH); break; \
    default: call(IDENTITY); \
    }

/* The gradients of z = activation((y - mean) * inverse * scale + shift), the moments being those of
 * y: dy [pixels, channels], dscale and dshift [channels]; inverse = 1 / standard deviation. */
int normalize_backward(const float *y, const float *dz, float *dy, const float *mean,
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
            memset(sums, 0, 2 * width * sizeof *sums);
#define CALL(K) gradient_sums(y + at * width, dz + at * width, wide, sums, count, width, K)
            BY_KIND(CALL)
#undef CALL
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
#define CALL(K) \
    gradient_rows(y + begin * width, dz + begin * width, dy + begin * width, wide, count, width, K)
        BY_KIND(CALL)
#undef CALL
    }
    free(wide), free(merged);
    return 0;
}

typedef struct {
    int64_t images, channels, height, width, out_height, out_width;
} geometry;

/* LANES channels of one image, with a border of zeros `pad` wide. */
INLINE void padded(const float *image, vector *to, int64_t height, int64_t width, int64_t channels,
                   int64_t pad) {
    int64_t row = width + 2 * pad;
    memset(to, 0, (height + 2 * pad) * row * sizeof *to);
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++)
            to[(y + pad) * row + x + pad] = *(const vector *)(image + (y * width + x) * channels);
}

/* sums [k*k] += the gradient of the weights of these channels of one image. */
INLINE void weight_gradient(const vector *x, const float *dz, vector *sums, const geometry *g,
                            int k, int stride) {
    int64_t row = g->width + 2 * (k / 2);
    vector sum[25];
#pragma GCC unroll 25
    for (int i = 0; i < k * k; i++) sum[i] = sums[i];
    for (int64_t oy = 0; oy < g->out_height; oy++)
        for (int64_t ox = 0; ox < g->out_width; ox++, dz += g->channels) {
            vector d = *(const vector *)dz;
            const vector *from = x + oy * stride * row + ox * stride;
#pragma GCC unroll 5
            for (int ky = 0; ky < k; ky++)
#pragma GCC unroll 5
                for (int kx = 0; kx < k; kx++) sum[ky * k + kx] += d * from[ky * row + kx];
        }
#pragma GCC unroll 25
    for (int i = 0; i < k * k; i++) sums[i] = sum[i];
}

/* The gradient of the input of one image: each output pixel is spread over its window. */
INLINE void spread_gradient(vector *dx, const float *dz, const vector *weight, const geometry *g,
                            int k, int stride) {
    int64_t row = g->width + 2 * (k / 2);
    for (int64_t oy = 0; oy < g->out_height; oy++)
        for (int64_t ox = 0; ox < g->out_width; ox++, dz += g->channels) {
            vector d = *(const vector *)dz;
            vector *to = dx + oy * stride * row + ox * stride;
#pragma GCC unroll 5
            for (int ky = 0; ky < k; ky++)
#pragma GCC unroll 5
                for (int kx = 0; kx < k; kx++) to[ky * row + kx] += d * weight[ky * k + kx];
        }
}

/* The same at stride 1: each input pixel gathers, and accumulators stay in registers. */
INLINE void gather_gradient(float *dx, const vector *dz, const vector *weight, const geometry *g,
                            int k) {
    int64_t row = g->width + 2 * (k / 2);
    for (int64_t y = 0; y < g->height; y++)
        for (int64_t x = 0; x < g->width; x++, dx += g->channels) {
            const vector *from = dz + y * row + x;
            vector sum[5] = {};
#pragma GCC unroll 5
            for (int ky = 0; ky < k; ky++)
#pragma GCC unroll 5
                for (int kx = 0; kx < k; kx++)
                    sum[kx] += from[ky * row + kx] * weight[k * k - 1 - (ky * k + kx)];
            vector total = sum[0];
#pragma GCC unroll 5
            for (int kx = 1; kx < k; kx++) total += sum[kx];
            *(vector *)dx = total;
        }
}

INLINE void image_gradients(const float *x, const float *dz, float *dx, const vector *weight,
                            vector *sums, vector *border, const geometry *g, int k, int stride) {
    int64_t pad = k / 2, row = g->width + 2 * pad;
    padded(x, border, g->height, g->width, g->channels, pad);
    weight_gradient(border, dz, sums, g, k, stride);
    if (stride == 1) {
        padded(dz, border, g->height, g->width, g->channels, pad);
        gather_gradient(dx, border, weight, g, k);
        return;
    }
    memset(border, 0, (g->height + 2 * pad) * row * sizeof *border);
    spread_gradient(border, dz, weight, g, k, stride);
    for (int64_t y = 0; y < g->height; y++)
        for (int64_t i = 0; i < g->width; i++)
            *(vector *)(dx + (y * g->width + i) * g->channels) = border[(y + pad) * row + i + pad];
}

/* Gradients of a depthwise convolution with kernel k = 3 or 5 and padding k / 2: x and dx
 * [images, height, width, channels], dz [images, out_height, out_width, channels], weight and
 * dweight [k * k, channels]. There are at least LANES channels; the last vector overlaps the one
 * before it where they do not divide. Returns 0, or 1 when there is no memory. */
int depthwise_backward(const float *x, const float *dz, float *dx, const float *weight,
                       float *dweight, const geometry *g, int64_t k, int64_t stride,
                       int64_t threads) {
    int64_t channels = g->channels, vectors = (channels + LANES - 1) / LANES, taps = k * k;
    int64_t area = (g->height + 2 * (k / 2)) * (g->width + 2 * (k / 2));
    int64_t out_area = g->out_height * g->out_width, partial = vectors * taps;
    vector *all = 0;
    if (posix_memalign((void **)&all, 64, PARTS * (partial + area + taps) * sizeof *all)) return 1;
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        vector *sums = all + part * (partial + area + taps), *border = sums + partial;
        vector *kernel = border + area;
        memset(sums, 0, partial * sizeof *sums);
        for (int64_t v = 0; v < vectors; v++) {
            int64_t c = (v + 1) * LANES > channels ? channels - LANES : v * LANES;
            for (int64_t i = 0; i < taps; i++) kernel[i] = *(const vector *)(weight + i * channels + c);
            for (int64_t n = g->images * part / PARTS; n < g->images * (part + 1) / PARTS; n++) {
                const float *from = x + n * g->height * g->width * channels + c;
                const float *above = dz + n * out_area * channels + c;
                float *to = dx + n * g->height * g->width * channels + c;
                vector *into = sums + v * taps;
                if (k == 3 && stride == 1) image_gradients(from, above, to, kernel, into, border, g, 3, 1);
                else if (k == 3) image_gradients(from, above, to, kernel, into, border, g, 3, 2);
                else if (stride == 1) image_gradients(from, above, to, kernel, into, border, g, 5, 1);
                else image_gradients(from, above, to, kernel, into, border, g, 5, 2);
            }
        }
    }
    for (int64_t v = 0; v < vectors; v++)
        for (int64_t i = 0; i < taps; i++) {
            vector sum = {};
            for (int part = 0; part < PARTS; part++)
                sum += all[part * (partial + area + taps) + v * taps + i];
            int64_t c = (v + 1) * LANES > channels ? channels - LANES : v * LANES;
            *(vector *)(dweight + i * channels + c) = sum;
        }
    free(all);
    return 0;
}
