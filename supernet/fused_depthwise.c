/* Depthwise convolutions and their gradients; compiled together with fused.c, which says what norms
 * and links are. Images are cut into slices of LANES channels; the last one overlaps the one before
 * it where they do not divide the channels, of which there are at least LANES. */

#ifdef __AVX512F__
#define SUMS 25 /* vectors of a kernel's window that are summed in registers */
#else
#define SUMS 10
#endif

typedef struct {
    int64_t images, channels, height, width, out_height, out_width;
} geometry;

INLINE int64_t slices_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

INLINE int64_t first_channel(int64_t slice, int64_t channels) {
    return (slice + 1) * LANES > channels ? channels - LANES : slice * LANES;
}

/* The border of zeros around `to`, a slice with `pad` more pixels on every side. */
INLINE void clear_border(vector *to, int64_t height, int64_t width, int64_t pad) {
    int64_t row = width + 2 * pad;
    memset(to, 0, pad * row * sizeof *to);
    for (int64_t y = pad; y < height + pad; y++)
        for (int64_t i = 0; i < pad; i++) to[y * row + i] = to[y * row + pad + width + i] = (vector){};
    memset(to + (height + pad) * row, 0, pad * row * sizeof *to);
}

INLINE void activated_line(const float *x, vector *z, const float *norm, int64_t width,
                           int64_t channels, activation kind) {
    vector factor = load(norm + FACTOR * channels), offset = load(norm + OFFSET * channels);
    for (int64_t i = 0; i < width; i++)
        z[i] = activate_slice(load(x + i * channels) * factor + offset, kind);
}

/* One slice of an image, or of what a norm [4, channels] makes of it, with a border of zeros. */
static void bordered(const void *image, int64_t stored, const float *norm, int64_t kind, vector *to,
                     int64_t height, int64_t width, int64_t channels, int64_t pad) {
    int64_t row = width + 2 * pad;
    clear_border(to, height, width, pad);
    for (int64_t y = 0; y < height; y++) {
        vector *line = to + (y + pad) * row + pad;
        int64_t at = y * width * channels;
        if (!norm) {
#define STORED(S, _) \
    for (int64_t x = 0; x < width; x++) line[x] = slice_at(image, at + x * channels, S)
            BY_STORAGE();
#undef STORED
            continue;
        }
#define CALL(K) activated_line((const float *)image + at, line, norm, width, channels, K)
        BY_KIND(CALL)
#undef CALL
    }
}

/* One slice of the gradient of y, or of what its link [4, channels] makes of g, likewise. */
static void bordered_gradient(const void *above, int64_t stored, const float *y, const float *link,
                              vector *to, int64_t height, int64_t width, int64_t channels,
                              int64_t pad) {
    if (!link) {
        bordered(above, stored, 0, IDENTITY, to, height, width, channels, pad);
        return;
    }
    const float *dy = above;
    vector factor = load(link + LINK_FACTOR * channels), mean = load(link + LINK_MEAN * channels);
    vector across = load(link + LINK_ACROSS * channels);
    vector constant = load(link + LINK_CONSTANT * channels) - across * mean;
    clear_border(to, height, width, pad);
    for (int64_t line = 0; line < height; line++, dy += width * channels, y += width * channels) {
        vector *d = to + (line + pad) * (width + 2 * pad) + pad;
        for (int64_t i = 0; i < width; i++)
            d[i] = factor * load(dy + i * channels) + across * load(y + i * channels) + constant;
    }
}

/* g = d * slope(x * factor + offset) of a line; sums [2] += g and g * (x - mean). */
INLINE void sloped_line(const float *x, const vector *d, float *g, const float *norm, vector *sums,
                        int64_t width, int64_t channels, activation kind) {
    vector mean = load(norm + MEAN * channels), factor = load(norm + FACTOR * channels);
    vector offset = load(norm + OFFSET * channels), sum = sums[0], cross = sums[1];
    for (int64_t i = 0; i < width; i++) {
        vector one = load(x + i * channels), found = slope_slice(d[i], one * factor + offset, kind);
        *(vector *)(g + i * channels) = found;
        sum += found;
        cross += found * (one - mean);
    }
    sums[0] = sum, sums[1] = cross;
}

/* Add a slice [count] of pixels `pitch` floats apart to mean and sum of squared deviations, as
 * add_block does. */
static void add_slice(const float *slice, int64_t pitch, int64_t count, int64_t before, double *mean,
                      double *square) {
    vector sum[4] = {}, deviation[4] = {};
    int64_t r = 0;
    for (; r + 4 <= count; r += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sum[i] += load(slice + (r + i) * pitch);
    for (; r < count; r++) sum[0] += load(slice + r * pitch);
    vector middle = (sum[0] + sum[1] + sum[2] + sum[3]) / (float)count;
    for (r = 0; r + 4 <= count; r += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vector d = load(slice + (r + i) * pitch) - middle;
            deviation[i] += d * d;
        }
    for (; r < count; r++) {
        vector d = load(slice + r * pitch) - middle;
        deviation[0] += d * d;
    }
    vector all = deviation[0] + deviation[1] + deviation[2] + deviation[3];
    double share = (double)count / (double)(before + count);
    for (int i = 0; i < LANES; i++) {
        double shift = middle[i] - mean[i];
        mean[i] += shift * share;
        square[i] += all[i] + shift * shift * (double)before * share;
    }
}

/* A slice [count] of pixels `pitch` floats apart = activation(slice + shift). */
static void shifted_slice(float *slice, int64_t pitch, int64_t count, vector shift, int64_t kind) {
#define CALL(K) \
    for (int64_t r = 0; r < count; r++) \
        *(vector *)(slice + r * pitch) = activate_slice(load(slice + r * pitch) + shift, K)
    BY_KIND(CALL)
#undef CALL
}

/* Ask for one of `slices` shares of image n of so many values, which will be needed soon. */
INLINE void expect(const void *images, int64_t n, int64_t values, int64_t slice, int64_t slices,
                   int64_t stored) {
    int64_t size = stored == FLOAT32 ? 4 : 2;
    int64_t begin = values * slice / slices * size, end = values * (slice + 1) / slices * size;
    const char *image = (const char *)images + n * values * size;
    for (int64_t at = begin; at < end; at += 64) __builtin_prefetch(image + at, 0, 2);
}

/* `rows` lines of sums [rows * k] += the gradient of those lines of the kernel; x begins there. */
INLINE void weight_lines(const vector *x, const vector *dy, vector *sums, const geometry *g, int k,
                         int stride, int rows) {
    int64_t row = g->width + 2 * (k / 2), dy_row = g->out_width + 2 * (k / 2);
    vector sum[25];
#pragma GCC unroll 25
    for (int i = 0; i < rows * k; i++) sum[i] = sums[i];
    for (int64_t oy = 0; oy < g->out_height; oy++)
        for (int64_t ox = 0; ox < g->out_width; ox++) {
            vector d = dy[oy * dy_row + ox];
            const vector *from = x + oy * stride * row + ox * stride;
#pragma GCC unroll 5
            for (int ky = 0; ky < rows; ky++)
#pragma GCC unroll 5
                for (int kx = 0; kx < k; kx++) sum[ky * k + kx] += d * from[ky * row + kx];
        }
#pragma GCC unroll 25
    for (int i = 0; i < rows * k; i++) sums[i] = sum[i];
}

/* sums [k * k] += the gradient of the weights, as many lines of the kernel at a time as stay in
 * registers. x and dy have borders; dy begins at its first pixel. */
INLINE void weight_gradient(const vector *x, const vector *dy, vector *sums, const geometry *g, int k,
                            int stride) {
    int64_t row = g->width + 2 * (k / 2);
    const int rows = SUMS / k < k ? SUMS / k : k;
#pragma GCC unroll 5
    for (int ky = 0; ky < k; ky += rows)
        weight_lines(x + ky * row, dy, sums + ky * k, g, k, stride, k - ky < rows ? k - ky : rows);
}

/* dx, with its border, += each pixel of dy spread over its window. */
INLINE void spread_gradient(vector *dx, const vector *dy, const vector *weight, const geometry *g,
                            int k, int stride) {
    int64_t row = g->width + 2 * (k / 2), dy_row = g->out_width + 2 * (k / 2);
    for (int64_t oy = 0; oy < g->out_height; oy++)
        for (int64_t ox = 0; ox < g->out_width; ox++) {
            vector d = dy[oy * dy_row + ox];
            vector *to = dx + oy * stride * row + ox * stride;
#pragma GCC unroll 5
            for (int ky = 0; ky < k; ky++)
#pragma GCC unroll 5
                for (int kx = 0; kx < k; kx++) to[ky * row + kx] += d * weight[ky * k + kx];
        }
}

typedef struct {
    int64_t row, pixel, line; /* vectors a line of `from`; floats a pixel and a line of `to` */
} layout;

/* height * width pixels of a convolution, whose sums stay in registers. */
INLINE void convolve_tile(float *to, const vector *from, const vector *weight, const layout *l, int k,
                          int stride, int height, int width) {
    vector sum[8] = {};
    for (int ky = 0; ky < k; ky++)
#pragma GCC unroll 5
        for (int kx = 0; kx < k; kx++) {
            vector w = weight[ky * k + kx];
#pragma GCC unroll 2
            for (int y = 0; y < height; y++)
#pragma GCC unroll 8
                for (int x = 0; x < width; x++)
                    sum[y * width + x] += w * from[(y * stride + ky) * l->row + x * stride + kx];
        }
#pragma GCC unroll 2
    for (int y = 0; y < height; y++)
#pragma GCC unroll 8
        for (int x = 0; x < width; x++)
            *(vector *)(to + y * l->line + x * l->pixel) = sum[y * width + x];
}

/* One or two lines of a convolution. */
INLINE void convolve_lines(float *to, const vector *from, const vector *weight, const layout *l, int k,
                           int stride, int height, int64_t width) {
    int64_t x = 0;
    if (height == 1)
        for (; x + 8 <= width; x += 8)
            convolve_tile(to + x * l->pixel, from + x * stride, weight, l, k, stride, 1, 8);
    for (; x + 4 <= width; x += 4)
        convolve_tile(to + x * l->pixel, from + x * stride, weight, l, k, stride, height, 4);
    for (; x < width; x++)
        convolve_tile(to + x * l->pixel, from + x * stride, weight, l, k, stride, height, 1);
}

/* Convolve a slice `from` with its border to height * width pixels, `pixel` floats each; narrow
 * lines go in pairs. */
INLINE void convolve(float *to, const vector *from, const vector *weight, int64_t height,
                     int64_t width, int64_t from_width, int64_t pixel, int k, int stride) {
    layout l = {from_width + 2 * (k / 2), pixel, width * pixel};
    int64_t y = 0;
    if (width < 8)
        for (; y + 2 <= height; y += 2)
            convolve_lines(to + y * l.line, from + y * stride * l.row, weight, &l, k, stride, 2, width);
    for (; y < height; y++)
        convolve_lines(to + y * l.line, from + y * stride * l.row, weight, &l, k, stride, 1, width);
}

#define WINDOW(K, S) \
    static void convolve_##K##_##S(float *to, const vector *from, const vector *weight, int64_t height, \
                                   int64_t width, int64_t from_width, int64_t pixel) { \
        convolve(to, from, weight, height, width, from_width, pixel, K, S); \
    }
WINDOW(3, 1)
WINDOW(3, 2)
WINDOW(5, 1)
WINDOW(5, 2)
#undef WINDOW

/* Kernels [slices, k * k] of taps [k * k, channels], turned around if so wished. */
static void packed(const float *taps, vector *to, int64_t channels, int64_t window, int turned) {
    for (int64_t s = 0; s < slices_of(channels); s++)
        for (int64_t i = 0; i < window; i++)
            to[s * window + (turned ? window - 1 - i : i)] =
                *(const vector *)(taps + i * channels + first_channel(s, channels));
}

#define BY_WINDOW(call) \
    if (k == 3 && stride == 1) call(3, 1); \
    else if (k == 3) call(3, 2); \
    else if (stride == 1) call(5, 1); \
    else call(5, 2)

/* y [images, out_height, out_width, channels] = the convolution with taps [k * k, channels] of x
 * [images, height, width, channels], or of what x_norm and kind make of it: kernel k = 3 or 5,
 * stride 1 or 2, padding k / 2. With y_norm [4, channels] its norm is computed from scale and shift;
 * with shift alone y is activated, by y_kind, after shift is added. Without norms and shift x and y
 * may be bfloat16. Returns 0, or 1 when there is no memory. */
int depthwise(const void *x, int64_t stored, const float *x_norm, int64_t kind, const float *taps,
              void *y, float *y_norm, const float *scale, const float *shift, double epsilon,
              int64_t y_kind, const geometry *g, int64_t k, int64_t stride, int64_t threads) {
    int64_t channels = g->channels, slices = slices_of(channels), window = k * k, counts[PARTS];
    int64_t area = (g->height + 2 * (k / 2)) * (g->width + 2 * (k / 2));
    int64_t out_area = g->out_height * g->out_width, lanes = slices * LANES;
    int64_t size_of_x = g->height * g->width * channels;
    vector *all = 0;
    double *totals = calloc(PARTS * 2 * lanes, sizeof *totals);
    int64_t part_size = area + (stored == BFLOAT16 ? out_area : 0); /* the latter to be rounded */
    int64_t size = slices * window + PARTS * part_size + slices; /* the last for moments of all lanes */
    if (!totals || posix_memalign((void **)&all, 64, (size + slices) * sizeof *all)) {
        free(totals);
        return 1;
    }
    packed(taps, all, channels, window, 0);
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        vector *border = all + slices * window + part * part_size, *exact = border + area;
        int64_t begin = g->images * part / PARTS, end = g->images * (part + 1) / PARTS;
        counts[part] = (end - begin) * out_area;
        for (int64_t n = begin; n < end; n++)
            for (int64_t s = 0; s < slices; s++) {
                int64_t c = first_channel(s, channels);
                int64_t out_at = n * out_area * channels + c;
                float *to = stored == FLOAT32 ? (float *)y + out_at : (float *)exact;
                int64_t pixel = stored == FLOAT32 ? channels : LANES;
                if (n + 1 < end) expect(x, n + 1, size_of_x, s, slices, stored);
                bordered(from_at(x, n * size_of_x + c, (storage)stored), stored, x_norm ? x_norm + c : 0,
                         kind, border, g->height, g->width, channels, k / 2);
#define CALL(K, S) \
    convolve_##K##_##S(to, border, all + s * window, g->out_height, g->out_width, g->width, pixel)
                BY_WINDOW(CALL);
#undef CALL
                if (stored == BFLOAT16)
                    for (int64_t i = 0; i < out_area; i++)
                        write_slice(y, out_at + i * channels, exact[i], BFLOAT16);
                if (shift && !y_norm) shifted_slice(to, channels, out_area, load(shift + c), y_kind);
                if (!y_norm) continue;
                double *mean = totals + part * 2 * lanes + s * LANES;
                add_slice(to, channels, out_area, (n - begin) * out_area, mean, mean + lanes);
            }
    }
    if (y_norm) {
        float *mean = (float *)(all + size - slices), *variance = mean + lanes;
        merge_parts(totals, counts, PARTS, lanes, lanes, mean, variance);
        for (int64_t s = 0; s < slices; s++) {
            int64_t c = first_channel(s, channels);
            memcpy(y_norm + MEAN * channels + c, mean + s * LANES, sizeof(vector));
            memcpy(y_norm + INVERSE * channels + c, variance + s * LANES, sizeof(vector));
        }
        finish_norm(y_norm, scale, shift, (float)epsilon, channels);
    }
    free(all), free(totals);
    return 0;
}

/* dx and sums [k * k] of one slice: x and dy with borders, dx at its first pixel, `row` vectors a
 * line. */
INLINE const vector *slice_gradients(const vector *x, const vector *dy, vector *dx,
                                     const vector *weight, vector *sums, const geometry *g, int k,
                                     int stride, int64_t *row) {
    int64_t pad = k / 2, inner = pad * (g->out_width + 2 * pad) + pad;
    weight_gradient(x, dy + inner, sums, g, k, stride);
    if (stride == 1) {
        if (k == 3) convolve_3_1((float *)dx, dy, weight, g->height, g->width, g->width, LANES);
        else convolve_5_1((float *)dx, dy, weight, g->height, g->width, g->width, LANES);
        *row = g->width;
        return dx;
    }
    *row = g->width + 2 * pad;
    memset(dx, 0, (g->height + 2 * pad) * *row * sizeof *dx);
    spread_gradient(dx, dy + inner, weight, g, k, stride);
    return dx + pad * *row + pad;
}

/* Gradients of that convolution from the gradient of y: dy, or g and y with their link: dtaps [k * k,
 * channels]; and without x_norm dx, or with it, as dx, the g of x, its link [4, channels], dscale
 * and dshift [channels]. Without link and norm dy, x and dx may be bfloat16. */
int depthwise_backward(const void *dy, int64_t stored, const float *y, const float *y_link,
                       const void *x, const float *x_norm, int64_t kind, const float *taps, void *dx,
                       float *dtaps, float *x_link, float *dscale, float *dshift, const geometry *g,
                       int64_t k, int64_t stride, int64_t threads) {
    int64_t channels = g->channels, slices = slices_of(channels), window = k * k, pad = k / 2;
    int64_t area = (g->height + 2 * pad) * (g->width + 2 * pad), lanes = slices * LANES;
    int64_t size_of_x = g->height * g->width * channels;
    int64_t size_of_y = g->out_height * g->out_width * channels;
    int64_t size = slices * window + 3 * area; /* dy with its border is no bigger than x */
    vector *all = 0;
    double *totals = calloc(PARTS * 2 * lanes, sizeof *totals);
    if (!totals
        || posix_memalign((void **)&all, 64, (slices * window + PARTS * size) * sizeof *all)) {
        free(totals);
        return 1;
    }
    packed(taps, all, channels, window, stride == 1);
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        vector *sums = all + slices * window + part * size, *border = sums + slices * window;
        vector *above = border + area, *below = above + area;
        memset(sums, 0, slices * window * sizeof *sums);
        int64_t begin = g->images * part / PARTS, end = g->images * (part + 1) / PARTS;
        for (int64_t n = begin; n < end; n++)
            for (int64_t s = 0; s < slices; s++) {
                int64_t c = first_channel(s, channels), row;
                int64_t at = n * size_of_x + c, out_at = n * size_of_y + c;
                if (n + 1 < end) {
                    expect(x, n + 1, size_of_x, s, slices, stored);
                    expect(dy, n + 1, size_of_y, s, slices, stored);
                    if (y_link) expect(y, n + 1, size_of_y, s, slices, stored);
                }
                const float *norm = x_norm ? x_norm + c : 0;
                bordered(from_at(x, at, (storage)stored), stored, norm, kind, border, g->height, g->width,
                         channels, pad);
                bordered_gradient(from_at(dy, out_at, (storage)stored), stored, y + out_at,
                                  y_link ? y_link + c : 0, above, g->out_height, g->out_width, channels,
                                  pad);
                const vector *found, *weight = all + s * window;
#define CALL(K, S) \
    found = slice_gradients(border, above, below, weight, sums + s * window, g, K, S, &row)
                BY_WINDOW(CALL);
#undef CALL
                vector added[2] = {};
                for (int64_t line = 0; line < g->height; line++) {
                    const vector *from = found + line * row;
                    int64_t line_at = at + line * g->width * channels;
                    if (!norm) {
#define STORED(S, _) \
    for (int64_t i = 0; i < g->width; i++) write_slice(dx, line_at + i * channels, from[i], S)
                        BY_STORAGE();
#undef STORED
                        continue;
                    }
                    const float *seen = (const float *)x + line_at;
                    float *to = (float *)dx + line_at;
#define CALL(K) sloped_line(seen, from, to, norm, added, g->width, channels, K)
                    BY_KIND(CALL)
#undef CALL
                }
                double *total = totals + part * 2 * lanes + s * LANES;
                for (int64_t i = 0; norm && i < LANES; i++) {
                    total[i] += added[0][i];
                    total[lanes + i] += added[1][i];
                }
            }
    }
    for (int64_t s = 0; s < slices; s++) {
        int64_t c = first_channel(s, channels);
        for (int64_t i = 0; i < window; i++) {
            vector sum = {};
            for (int part = 0; part < PARTS; part++)
                sum += all[slices * window + part * size + s * window + i];
            *(vector *)(dtaps + i * channels + c) = sum;
        }
        for (int64_t i = 0; x_norm && i < LANES; i++) {
            double sum = 0, cross = 0;
            for (int part = 0; part < PARTS; part++) {
                sum += totals[part * 2 * lanes + s * LANES + i];
                cross += totals[(part * 2 + 1) * lanes + s * LANES + i];
            }
            finish_link(x_norm, sum, cross, g->images * g->height * g->width, c + i, channels, x_link,
                        dscale, dshift);
        }
    }
    free(all), free(totals);
    return 0;
}
