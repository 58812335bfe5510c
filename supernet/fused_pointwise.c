/* Pointwise convolutions and their gradients; compiled together with fused.c, which says what norms
 * and links are. */

#define PIXELS 48 /* of a block: what is computed of it stays in the second-level cache */
#define PARTS_PIXELS 128 /* at least so many are worth a part of their own */
#define TILE 3 /* vectors of a tile that is summed in registers */
#ifdef __AVX512F__
#define TILE_ROWS 8
#else
#define TILE_ROWS 4
#endif

/* Compilers would load a vector anew for each line of a tile, more loads than a cycle has. */
#ifdef __x86_64__
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v)
#endif

INLINE int64_t whole(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

INLINE int64_t parts_of(int64_t pixels) {
    int64_t parts = pixels / PARTS_PIXELS;
    return parts < 1 ? 1 : parts > PARTS ? PARTS : parts;
}

/* c [rows, width vectors] (+)= a b, where a (i, k) = a[i * ai + k * ak]. */
INLINE void multiply_tile(const float *a, int64_t ai, int64_t ak, const float *b, int64_t b_pitch,
                          float *c, int64_t c_pitch, int64_t depth, int add, int rows, int width) {
    vector sum[TILE_ROWS * TILE];
    const float *line[TILE_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        line[i] = a + i * ai;
#pragma GCC unroll 3
        for (int j = 0; j < width; j++)
            sum[i * width + j] = add ? *(const vector *)(c + i * c_pitch + j * LANES) : (vector){};
    }
    for (int64_t k = 0; k < depth; k++, b += b_pitch) {
        vector row[TILE];
#pragma GCC unroll 3
        for (int j = 0; j < width; j++) {
            row[j] = *(const vector *)(b + j * LANES);
            IN_REGISTER(row[j]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            float one = line[i][k * ak];
#pragma GCC unroll 3
            for (int j = 0; j < width; j++) sum[i * width + j] += one * row[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int j = 0; j < width; j++)
            *(vector *)(c + i * c_pitch + j * LANES) = sum[i * width + j];
}

INLINE void multiply_column(const float *a, int64_t ai, int64_t ak, const float *b, int64_t b_pitch,
                            float *c, int64_t c_pitch, int64_t rows, int64_t depth, int add, int width) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        multiply_tile(a + i * ai, ai, ak, b, b_pitch, c + i * c_pitch, c_pitch, depth, add, TILE_ROWS,
                      width);
    for (; i < rows; i++)
        multiply_tile(a + i * ai, ai, ak, b, b_pitch, c + i * c_pitch, c_pitch, depth, add, 1, width);
}

/* `call` with as many vectors as are summed at a time, for every column j of `floats`. */
#define BY_COLUMN(floats, call) \
    for (int64_t j = 0, left = (floats) / LANES; left;) { \
        int64_t vectors = left >= TILE && left != 4 ? TILE : left >= 2 ? 2 : 1; \
        if (vectors == 3) call(3); \
        else if (vectors == 2) call(2); \
        else call(1); \
        j += vectors * LANES, left -= vectors; \
    }

/* c [rows, width] = a [rows, depth] b [depth, width], width being whole vectors. */
static void multiply(const float *a, const float *b, float *c, int64_t rows, int64_t depth,
                     int64_t width) {
#define CALL(W) multiply_column(a, depth, 1, b + j, width, c + j, width, rows, depth, 0, W)
    BY_COLUMN(width, CALL)
#undef CALL
}

/* c [rows, width] += a [depth, rows] transposed times b [depth, width], likewise. */
static void add_transposed(const float *a, const float *b, float *c, int64_t rows, int64_t depth,
                           int64_t width) {
#define CALL(W) multiply_column(a, 1, rows, b + j, width, c + j, width, rows, depth, 1, W)
    BY_COLUMN(width, CALL)
#undef CALL
}

static void activated(const float *x, float *z, int64_t z_pitch, const float *norm, int64_t rows,
                      int64_t width, int64_t kind) {
#define CALL(K) activated_rows(x, z, z_pitch, norm, rows, width, K)
    BY_KIND(CALL)
#undef CALL
}

static void sloped(const float *x, const float *d, int64_t d_pitch, float *g, const float *norm,
                   float *sums, int64_t rows, int64_t width, int64_t kind) {
#define CALL(K) sloped_rows(x, d, d_pitch, g, norm, sums, rows, width, K)
    BY_KIND(CALL)
#undef CALL
}

/* to [rows, width] = activation(from + shift + residual), rows of from `pitch` floats apart. */
static void shifted(const float *from, int64_t pitch, const float *shift, const float *residual,
                    float *to, int64_t rows, int64_t width, int64_t kind) {
#define CALL(K) \
    for (int64_t r = 0; r < rows; r++) \
        for (int64_t i = 0; i < width; i++) \
            to[r * width + i] = activate( \
                from[r * pitch + i] + shift[i] + (residual ? residual[r * width + i] : 0), K)
    BY_KIND(CALL)
#undef CALL
}

/* y [pixels, out] = weight [out, in] times x [pixels, in], or times what x_norm and kind make of x.
 * With y_norm [4, out] its norm is computed from scale and shift [out]; with shift alone y is
 * activated, by y_kind, after shift and residual, if there is one, are added. Returns 0, or 1 when
 * there is no memory. */
int pointwise(const float *x, const float *x_norm, int64_t kind, const float *weight, float *y,
              float *y_norm, const float *scale, const float *shift, double epsilon,
              const float *residual, int64_t y_kind, int64_t pixels, int64_t in, int64_t out,
              int64_t threads) {
    int64_t parts = parts_of(pixels), width = whole(out), counts[PARTS];
    int64_t size = PIXELS * (in + width) + 2 * out;
    float *all = 0;
    double *totals = calloc(parts * 2 * out, sizeof *totals);
    if (!totals || posix_memalign((void **)&all, 64, (in * width + parts * size) * sizeof *all)) {
        free(totals);
        return 1;
    }
    float *across = all + parts * size; /* weights [in, width] */
    for (int64_t k = 0; k < in; k++)
        for (int64_t o = 0; o < width; o++) across[k * width + o] = o < out ? weight[o * in + k] : 0;
    PARALLEL
    for (int part = 0; part < parts; part++) {
        float *z = all + part * size, *c = z + PIXELS * in, *scratch = c + PIXELS * width;
        int64_t begin = pixels * part / parts, end = pixels * (part + 1) / parts;
        counts[part] = end - begin;
        for (int64_t at = begin; at < end; at += PIXELS) {
            int64_t count = end - at < PIXELS ? end - at : PIXELS;
            const float *from = x + at * in;
            if (x_norm) activated(from, z, in, x_norm, count, in, kind), from = z;
            float *to = width == out ? y + at * out : c;
            multiply(from, across, to, count, in, width);
            if (y_norm)
                add_block(to, width, count, out, at - begin, scratch, totals + part * 2 * out);
            if (shift && !y_norm)
                shifted(to, width, shift, residual ? residual + at * out : 0, y + at * out, count, out,
                        y_kind);
            else if (to == c)
                for (int64_t r = 0; r < count; r++)
                    memcpy(y + (at + r) * out, c + r * width, out * sizeof *y);
        }
    }
    if (y_norm) {
        merge_parts(totals, counts, parts, out, out, y_norm + MEAN * out, y_norm + INVERSE * out);
        finish_norm(y_norm, scale, shift, (float)epsilon, out);
    }
    free(all), free(totals);
    return 0;
}

/* Gradients of that convolution from the gradient of y: dy [pixels, out], or g and y with their
 * link: dweight [out, in]; and without x_norm dx [pixels, in], plus `residual` if there is one, or
 * with x_norm, as dx, the g of x, its link [4, in], dscale and dshift [in]. */
int pointwise_backward(const float *dy, const float *y, const float *y_link, const float *x,
                       const float *x_norm, int64_t kind, const float *weight, const float *residual,
                       float *dx, float *dweight, float *x_link, float *dscale, float *dshift,
                       int64_t pixels, int64_t in, int64_t out, int64_t threads) {
    int64_t parts = parts_of(pixels), width = whole(in);
    int64_t size = PIXELS * (out + 2 * width) + out * width + 2 * in;
    float *all = 0;
    double *totals = calloc(parts * 2 * in, sizeof *totals);
    if (!totals || posix_memalign((void **)&all, 64, (out * width + parts * size) * sizeof *all)) {
        free(totals);
        return 1;
    }
    float *along = all + parts * size; /* weights [out, width] */
    memset(along, 0, out * width * sizeof *along);
    for (int64_t o = 0; o < out; o++) memcpy(along + o * width, weight + o * in, in * sizeof *along);
    PARALLEL
    for (int part = 0; part < parts; part++) {
        float *partial = all + part * size, *d = partial + out * width, *z = d + PIXELS * out;
        float *c = z + PIXELS * width, *sums = c + PIXELS * width;
        double *total = totals + part * 2 * in;
        memset(partial, 0, out * width * sizeof *partial);
        memset(z, 0, PIXELS * width * sizeof *z);
        int64_t begin = pixels * part / parts, end = pixels * (part + 1) / parts;
        for (int64_t at = begin; at < end; at += PIXELS) {
            int64_t count = end - at < PIXELS ? end - at : PIXELS;
            const float *above = dy + at * out, *from = x + at * in, *seen = from;
            if (y_link) {
                linked_rows(above, y + at * out, d, y_link, count, out);
                above = d;
            }
            if (x_norm) activated(from, z, width, x_norm, count, in, kind), seen = z;
            else if (width != in) {
                for (int64_t r = 0; r < count; r++)
                    memcpy(z + r * width, from + r * in, in * sizeof *z);
                seen = z;
            }
            add_transposed(above, seen, partial, out, count, width);
            multiply(above, along, c, count, out, width);
            float *to = dx + at * in;
            if (x_norm) {
                memset(sums, 0, 2 * in * sizeof *sums);
                sloped(from, c, width, to, x_norm, sums, count, in, kind);
                for (int64_t i = 0; i < 2 * in; i++) total[i] += sums[i];
                continue;
            }
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = 0; i < in; i++)
                    to[r * in + i] = c[r * width + i] + (residual ? residual[(at + r) * in + i] : 0);
        }
    }
    for (int64_t o = 0; o < out; o++) {
        float *to = dweight + o * in;
        memcpy(to, all + o * width, in * sizeof *to);
        for (int64_t part = 1; part < parts; part++) {
            const float *partial = all + part * size + o * width;
            for (int64_t i = 0; i < in; i++) to[i] += partial[i];
        }
    }
    for (int64_t c = 0; x_norm && c < in; c++) {
        double sum = 0, cross = 0;
        for (int64_t part = 0; part < parts; part++) {
            sum += totals[part * 2 * in + c];
            cross += totals[part * 2 * in + in + c];
        }
        finish_link(x_norm, sum, cross, pixels, c, in, x_link, dscale, dshift);
    }
    free(all), free(totals);
    return 0;
}
