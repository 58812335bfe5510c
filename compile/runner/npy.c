/* NumPy's array files. The header is a Python dictionary in text, padded to a multiple of 64. */
#include "npy.h"

#include <stdint.h>
#include <string.h>

/* Returns the place behind the first `word` in the header, or NULL. */
static const char *behind(const char *start, const char *end, const char *word, size_t length) {
    for (; (size_t)(end - start) >= length; start++) {
        if (!memcmp(start, word, length)) return start + length;
    }
    return NULL;
}

#define BEHIND(start, end, word) behind(start, end, word, sizeof(word) - 1)

/* Reads "2, 3, 4)"; sizes are kept so small that nothing overflows. */
static int read_shape(const char *text, const char *end, struct array *array) {
    int dimensions = 0;
    array->rows = array->columns = 1;
    while (text < end && *text != ')') {
        size_t size = 0;
        if (*text < '0' || *text > '9') return -1;
        for (; text < end && *text >= '0' && *text <= '9'; text++) {
            size = size * 10 + (size_t)(*text - '0');
            if (size > UINT32_MAX) return -1;
        }
        size_t *product = dimensions++ ? &array->columns : &array->rows;
        *product *= size;
        if (*product > UINT32_MAX) return -1;
        while (text < end && (*text == ',' || *text == ' ')) text++;
    }
    return text < end && dimensions ? 0 : -1;
}

int npy_read(struct bytes file, struct array *array) {
    const unsigned char *bytes = file.data;
    if (file.size < 12 || memcmp(bytes, "\x93NUMPY", 6) || bytes[6] < 1 || bytes[6] > 3) return -1;
    size_t start = bytes[6] == 1 ? 10 : 12;
    size_t length = bytes[8] | (size_t)bytes[9] << 8;
    if (bytes[6] > 1) length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (length > file.size - start || (start + length) % sizeof(float)) return -1;
    const char *header = (const char *)bytes + start;
    const char *end = header + length;
    const char *shape = BEHIND(header, end, "'shape': (");
    if (!shape || !BEHIND(header, end, "'descr': '<f4'")) return -1;
    if (!BEHIND(header, end, "'fortran_order': False")) return -1;
    if (read_shape(shape, end, array)) return -1;
    size_t values = (file.size - start - length) / sizeof(float);
    if ((file.size - start - length) % sizeof(float)) return -1;
    if (array->columns && array->rows > values / array->columns) return -1;
    if (array->rows * array->columns != values) return -1;
    array->values = (const float *)end;
    return 0;
}
