/* Dense convolutions and their gradients; compiled together with fused.c, which says what norms and
 * links are, and with the tiles' sizes of fused_pointwise.c. Images are given a border of zeros, in
 * which a line of a pixel's window is one run of k * in floats; so windows are multiplied where they
 * are, and never copied. */

#define GROUP_PIXELS 64 /* of so many at least the weights' gradient is summed in registers */
#define PARTIAL_FLOATS (1 << 19) /* of all parts' gradients of the weights; but four parts there are */

/* An image, or what a norm [4, channels] makes of it, with a border of zeros. */
static void framed(const float *image, const float *norm, int64_t kind, float *to, int64_t height,
                   int64_t width, int64_t channels, int64_t pad) {
    int64_t side = pad * channels, inner = width * channels, row = inner + 2 * side;
    memset(to, 0, pad * row * sizeof *to);
    for (int64_t y = 0; y < height; y++, image += inner) {
        float *line = to + (y + pad) * row;
        memset(line, 0, side * sizeof *line);
        memset(line + side + inner, 0, side * sizeof *line);
        if (norm) activated(image, line + side, channels, norm, width, channels, kind);
        else memcpy(line + side, image, inner * sizeof *line);
    }
    memset(to + (height + pad) * row, 0, pad * row * sizeof *to);
}

/* A matrix [depth, columns], its element (d, c) at from[d * down + c * across], as columns of as many
 * vectors as are summed at a time, one after the other; what is missing to whole vectors is zero. */
static void pack_columns(const float *from, int64_t down, int64_t across, float *to, int64_t depth,
                         int64_t columns) {
#define CALL(W) \
    for (int64_t d = 0; d < depth; d++) \
        for (int64_t c = j; c < j + W * LANES; c++) \
            *to++ = c < columns ? from[d * down + c * across] : 0
    BY_COLUMN(whole(columns), CALL)
#undef CALL
}

/* c [rows, width vectors] = the windows that begin at `from`, of k lines of `depth` floats, `pitch`
 * apart, times b [k * depth, width vectors]. */
INLINE void window_tile(const float *const *from, int64_t pitch, const float *b, float *c,
                        int64_t c_pitch, int64_t depth, int64_t k, int rows, int width) {
    vector sum[TILE_ROWS * TILE];
    const float *line[TILE_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        line[i] = from[i];
#pragma GCC unroll 3
        for (int j = 0; j < width; j++) sum[i * width + j] = (vector){};
    }
    for (int64_t ky = 0; ky < k; ky++) {
        for (int64_t d = 0; d < depth; d++, b += width * LANES) {
            vector row[TILE];
#pragma GCC unroll 3
            for (int j = 0; j < width; j++) {
                row[j] = load(b + j * LANES);
                IN_REGISTER(row[j]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                float one = line[i][d];
#pragma GCC unroll 3
                for (int j = 0; j < width; j++) sum[i * width + j] += one * row[j];
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) line[i] += pitch;
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int j = 0; j < width; j++)
            *(vector *)(c + i * c_pitch + j * LANES) = sum[i * width + j];
}

/* to[i] [width vectors] += a [rows, depth] b [depth, width vectors]. */
INLINE void spread_tile(const float *a, int64_t a_pitch, const float *b, float *const *to,
                        int64_t depth, int rows, int width) {
    vector sum[TILE_ROWS * TILE];
    const float *line[TILE_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        line[i] = a + i * a_pitch;
#pragma GCC unroll 3
        for (int j = 0; j < width; j++) sum[i * width + j] = load(to[i] + j * LANES);
    }
    for (int64_t d = 0; d < depth; d++, b += width * LANES) {
        vector row[TILE];
#pragma GCC unroll 3
        for (int j = 0; j < width; j++) {
            row[j] = load(b + j * LANES);
            IN_REGISTER(row[j]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            float one = line[i][d];
#pragma GCC unroll 3
            for (int j = 0; j < width; j++) sum[i * width + j] += one * row[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int j = 0; j < width; j++) *(vector *)(to[i] + j * LANES) = sum[i * width + j];
}

/* c [rows, width vectors] += the sum over lines of `count` pixels of d [rows] times x [width
 * vectors]; pixels of d are d_pitch floats apart, lines of x begin at `from` + starts, its pixels are
 * `step` apart. */
INLINE void weights_tile(const float *d, int64_t d_pitch, const float *from, const int64_t *starts,
                         int64_t lines, int64_t count, int64_t step, float *c, int64_t c_pitch,
                         int rows, int width) {
    vector sum[TILE_ROWS * TILE];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int j = 0; j < width; j++) sum[i * width + j] = load(c + i * c_pitch + j * LANES);
    for (int64_t y = 0; y < lines; y++) {
        const float *x = from + starts[y];
        for (int64_t p = 0; p < count; p++, x += step, d += d_pitch) {
            vector row[TILE];
#pragma GCC unroll 3
            for (int j = 0; j < width; j++) {
                row[j] = load(x + j * LANES);
                IN_REGISTER(row[j]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                float one = d[i];
#pragma GCC unroll 3
                for (int j = 0; j < width; j++) sum[i * width + j] += one * row[j];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int j = 0; j < width; j++)
            *(vector *)(c + i * c_pitch + j * LANES) = sum[i * width + j];
}

typedef struct {
    int64_t in, out, k, stride, pad, row, area, pixels; /* row and area: floats, with the border */
} windows;

static windows windows_of(const geometry *g, int64_t out, int64_t k, int64_t stride) {
    int64_t pad = k / 2, row = (g->width + 2 * pad) * g->channels;
    return (windows){g->channels, out, k, stride, pad, row, (g->height + 2 * pad) * row,
                     g->out_height * g->out_width};
}

INLINE const float *window_of(const float *frame, const windows *w, const geometry *g, int64_t pixel) {
    int64_t y = pixel / g->out_width, x = pixel % g->out_width;
    return frame + y * w->stride * w->row + x * w->stride * w->in;
}

INLINE void window_column(const float *frame, const float *b, float *c, int64_t c_pitch,
                          const windows *w, const geometry *g, int width) {
    const float *from[TILE_ROWS];
    int64_t p = 0, depth = w->k * w->in;
    for (; p + TILE_ROWS <= w->pixels; p += TILE_ROWS) {
        for (int i = 0; i < TILE_ROWS; i++) from[i] = window_of(frame, w, g, p + i);
        window_tile(from, w->row, b, c + p * c_pitch, c_pitch, depth, w->k, TILE_ROWS, width);
    }
    for (; p < w->pixels; p++) {
        from[0] = window_of(frame, w, g, p);
        window_tile(from, w->row, b, c + p * c_pitch, c_pitch, depth, w->k, 1, width);
    }
}

/* c [pixels, whole(out)] = the convolution of an image with its border and packed weights. */
static void convolve_frame(const float *frame, const float *packed_weight, float *c, const windows *w,
                           const geometry *g) {
    int64_t width = whole(w->out), depth = w->k * w->k * w->in;
#define CALL(W) window_column(frame, packed_weight + j * depth, c + j, width, w, g, W)
    BY_COLUMN(width, CALL)
#undef CALL
}

INLINE void spread_column(const float *d, const float *b, float *frame, int64_t pixel, int64_t row,
                          const windows *w, const geometry *g, int width) {
    float *to[TILE_ROWS];
    int64_t p = 0;
    for (; p + TILE_ROWS <= w->pixels; p += TILE_ROWS) {
        for (int i = 0; i < TILE_ROWS; i++)
            to[i] = frame + (p + i) / g->out_width * w->stride * row
                  + (p + i) % g->out_width * w->stride * pixel;
        spread_tile(d + p * w->out, w->out, b, to, w->out, TILE_ROWS, width);
    }
    for (; p < w->pixels; p++) {
        to[0] = frame + p / g->out_width * w->stride * row + p % g->out_width * w->stride * pixel;
        spread_tile(d + p * w->out, w->out, b, to, w->out, 1, width);
    }
}

/* frame [height + border, width + border, whole(in)] = what gradients d [pixels, out] of an image are
 * to its pixels; weights are packed for each place of the window. */
static void spread_frame(const float *d, const float *packed_weight, float *frame, const windows *w,
                         const geometry *g) {
    int64_t pixel = whole(w->in), row = (g->width + 2 * w->pad) * pixel;
    memset(frame, 0, (g->height + 2 * w->pad) * row * sizeof *frame);
    for (int64_t t = 0; t < w->k * w->k; t++) {
        const float *weight = packed_weight + t * w->out * pixel;
        float *to = frame + t / w->k * row + t % w->k * pixel;
#define CALL(W) spread_column(d, weight + j * w->out, to + j, pixel, row, w, g, W)
        BY_COLUMN(pixel, CALL)
#undef CALL
    }
}

INLINE void weights_column(const float *d, const float *frame, const int64_t *starts, int64_t lines,
                           float *c, int64_t c_pitch, const windows *w, const geometry *g, int width) {
    int64_t o = 0, step = w->stride * w->in;
    for (; o + TILE_ROWS <= w->out; o += TILE_ROWS)
        weights_tile(d + o, w->out, frame, starts, lines, g->out_width, step, c + o * c_pitch, c_pitch,
                     TILE_ROWS, width);
    for (; o < w->out; o++)
        weights_tile(d + o, w->out, frame, starts, lines, g->out_width, step, c + o * c_pitch, c_pitch,
                     1, width);
}

/* partial [k, out, whole(k * in)] += the gradient of the weights, of images with their borders whose
 * lines of windows begin at `starts`. Past k * in lies what has no meaning. */
static void add_weights(const float *d, const float *frames, const int64_t *starts, int64_t lines,
                        float *partial, const windows *w, const geometry *g) {
    int64_t width = whole(w->k * w->in);
    for (int64_t ky = 0; ky < w->k; ky++) {
        const float *from = frames + ky * w->row;
        float *to = partial + ky * w->out * width;
#define CALL(W) weights_column(d, from + j, starts, lines, to + j, width, w, g, W)
        BY_COLUMN(width, CALL)
#undef CALL
    }
}

/* y [images, out_height, out_width, out] = the convolution with weight [out, k, k, in] of x [images,
 * height, width, in], or of what x_norm and kind make of it: padding k / 2. With y_norm [4, out] its
 * norm is computed from scale and shift [out]; with shift alone y is activated, by y_kind, after
 * shift and residual, if there is one, are added. Returns 0, or 1 when there is no memory. */
int dense(const float *x, const float *x_norm, int64_t kind, const float *weight, float *y,
          float *y_norm, const float *scale, const float *shift, double epsilon, const float *residual,
          int64_t y_kind, const geometry *g, int64_t out, int64_t k, int64_t stride, int64_t threads) {
    windows w = windows_of(g, out, k, stride);
    int64_t width = whole(out), depth = k * k * w.in, counts[PARTS];
    int64_t size = w.area + w.pixels * width + 2 * out;
    float *all = 0;
    double *totals = calloc(PARTS * 2 * out, sizeof *totals);
    if (!totals || posix_memalign((void **)&all, 64, (depth * width + PARTS * size) * sizeof *all)) {
        free(totals);
        return 1;
    }
    pack_columns(weight, 1, depth, all, depth, out);
    PARALLEL
    for (int part = 0; part < PARTS; part++) {
        float *frame = all + depth * width + part * size, *c = frame + w.area;
        float *scratch = c + w.pixels * width;
        double *total = totals + part * 2 * out;
        int64_t begin = g->images * part / PARTS, end = g->images * (part + 1) / PARTS;
        counts[part] = (end - begin) * w.pixels;
        for (int64_t n = begin; n < end; n++) {
            float *to = y + n * w.pixels * out, *found = width == out ? to : c;
            framed(x + n * g->height * g->width * w.in, x_norm, kind, frame, g->height, g->width, w.in,
                   w.pad);
            convolve_frame(frame, all, found, &w, g);
            for (int64_t at = 0; y_norm && at < w.pixels; at += PIXELS) {
                int64_t count = w.pixels - at < PIXELS ? w.pixels - at : PIXELS;
                int64_t before = (n - begin) * w.pixels + at;
                add_block(found + at * width, width, count, out, before, scratch, total);
            }
            if (shift && !y_norm)
                shifted(found, width, shift, residual ? residual + n * w.pixels * out : 0, to, w.pixels,
                        out, y_kind);
            else if (found == c)
                for (int64_t p = 0; p < w.pixels; p++)
                    memcpy(to + p * out, c + p * width, out * sizeof *to);
        }
    }
    if (y_norm) {
        merge_parts(totals, counts, PARTS, out, out, y_norm + MEAN * out, y_norm + INVERSE * out);
        finish_norm(y_norm, scale, shift, (float)epsilon, out);
    }
    free(all), free(totals);
    return 0;
}

/* dx of an image from its frame, `pitch` floats a pixel: plus residual, or times the slope of what
 * x_norm makes of x, with sums [2 * in] of that added to the total. */
static void finish_image(const float *frame, int64_t pitch, const float *x, const float *x_norm,
                         int64_t kind, const float *residual, float *dx, float *sums, double *total,
                         const windows *w, const geometry *g) {
    int64_t row = (g->width + 2 * w->pad) * pitch, line = g->width * w->in;
    memset(sums, 0, 2 * w->in * sizeof *sums);
    frame += w->pad * (row + pitch);
    for (int64_t y = 0; y < g->height; y++, frame += row, x += line, dx += line) {
        if (x_norm) {
            sloped(x, frame, pitch, dx, x_norm, sums, g->width, w->in, kind);
            continue;
        }
        for (int64_t p = 0; p < g->width; p++)
            for (int64_t i = 0; i < w->in; i++)
                dx[p * w->in + i] =
                    frame[p * pitch + i] + (residual ? residual[y * line + p * w->in + i] : 0);
    }
    for (int64_t i = 0; x_norm && i < 2 * w->in; i++) total[i] += sums[i];
}

/* Gradients of that convolution from the gradient of y: dy, or g and y with their link: dweight [out,
 * k, k, in]; and unless dx is null: without x_norm dx, plus `residual` if there is one, or with
 * x_norm, as dx, the g of x, its link [4, in], dscale and dshift [in]. */
int dense_backward(const float *dy, const float *y, const float *y_link, const float *x,
                   const float *x_norm, int64_t kind, const float *weight, const float *residual,
                   float *dx, float *dweight, float *x_link, float *dscale, float *dshift,
                   const geometry *g, int64_t out, int64_t k, int64_t stride, int64_t threads) {
    windows w = windows_of(g, out, k, stride);
    int64_t line = k * w.in, width = whole(line), pixel = whole(w.in), floats = k * out * width;
    int64_t parts = PARTIAL_FLOATS / floats < 4 ? 4 : PARTIAL_FLOATS / floats;
    if (parts > PARTS) parts = PARTS;
    int64_t group = (GROUP_PIXELS + w.pixels - 1) / w.pixels, image = g->height * g->width * w.in;
    int64_t frame_size = (g->height + 2 * w.pad) * (g->width + 2 * w.pad) * pixel;
    int64_t size = floats + group * (w.area + w.pixels * out) + LANES * 2 + frame_size + 2 * w.in;
    int64_t packed_size = dx ? k * k * out * pixel : 0, *starts = 0;
    float *all = 0;
    double *totals = calloc(parts * 2 * w.in, sizeof *totals);
    starts = malloc(group * g->out_height * sizeof *starts);
    if (!totals || !starts
        || posix_memalign((void **)&all, 64, (packed_size + parts * size) * sizeof *all)) {
        free(totals), free(starts);
        return 1;
    }
    for (int64_t t = 0; dx && t < k * k; t++)
        pack_columns(weight + t * w.in, k * line, 1, all + t * out * pixel, out, w.in);
    for (int64_t i = 0; i < group * g->out_height; i++)
        starts[i] = i / g->out_height * w.area + i % g->out_height * stride * w.row;
    PARALLEL
    for (int part = 0; part < parts; part++) {
        float *partial = all + packed_size + part * size, *frames = partial + floats;
        float *linked = frames + group * w.area + 2 * LANES, *frame = linked + group * w.pixels * out;
        float *sums = frame + frame_size;
        memset(partial, 0, floats * sizeof *partial);
        memset(frames + group * w.area, 0, 2 * LANES * sizeof *frames); /* is read, not used */
        int64_t begin = g->images * part / parts, end = g->images * (part + 1) / parts;
        for (int64_t at = begin; at < end; at += group) {
            int64_t count = end - at < group ? end - at : group;
            const float *above = dy + at * w.pixels * out;
            if (y_link) {
                linked_rows(above, y + at * w.pixels * out, linked, y_link, count * w.pixels, out);
                above = linked;
            }
            for (int64_t n = 0; n < count; n++)
                framed(x + (at + n) * image, x_norm, kind, frames + n * w.area, g->height, g->width,
                       w.in, w.pad);
            add_weights(above, frames, starts, count * g->out_height, partial, &w, g);
            for (int64_t n = 0; dx && n < count; n++) {
                int64_t first = (at + n) * image;
                spread_frame(above + n * w.pixels * out, all, frame, &w, g);
                finish_image(frame, pixel, x + first, x_norm, kind, residual ? residual + first : 0,
                             dx + first, sums, totals + part * 2 * w.in, &w, g);
            }
        }
    }
    PARALLEL
    for (int64_t o = 0; o < out; o++)
        for (int64_t ky = 0; ky < k; ky++) {
            const float *partial = all + packed_size + (ky * out + o) * width;
            float *to = dweight + (o * k + ky) * line;
            memcpy(to, partial, line * sizeof *to);
            for (int64_t part = 1; part < parts; part++)
                for (int64_t i = 0; i < line; i++) to[i] += partial[part * size + i];
        }
    for (int64_t c = 0; dx && x_norm && c < w.in; c++) {
        double sum = 0, cross = 0;
        for (int64_t part = 0; part < parts; part++) {
            sum += totals[part * 2 * w.in + c];
            cross += totals[part * 2 * w.in + w.in + c];
        }
        finish_link(x_norm, sum, cross, g->images * g->height * g->width, c, w.in, x_link, dscale,
                    dshift);
    }
    free(all), free(totals), free(starts);
    return 0;
}
