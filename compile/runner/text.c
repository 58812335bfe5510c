/* Lines of text, put together from words and numbers. */
#include "text.h"

int text_equal(const char *left, const char *right) {
    while (*left && *left == *right) left++, right++;
    return *left == *right;
}

static void add_character(struct text *text, char one) {
    if (text->length + 1 < sizeof text->characters) text->characters[text->length++] = one;
    text->characters[text->length] = 0;
}

void text_add(struct text *text, const char *words) {
    for (; *words; words++) add_character(text, *words);
}

void text_add_integer(struct text *text, unsigned long long number) {
    char digits[20];
    int count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (count) add_character(text, digits[--count]);
}

/* Adds a sign, or the words for what is no finite number; returns whether a number is left. */
static int add_sign(struct text *text, double *number) {
    if (*number != *number) {
        text_add(text, "nan");
        return 0;
    }
    if (*number < 0) {
        add_character(text, '-');
        *number = -*number;
    }
    if (*number > 1.7e308) {
        text_add(text, "inf");
        return 0;
    }
    return 1;
}

void text_add_fixed(struct text *text, double number, int decimals) {
    unsigned long long unit = 1;
    if (!add_sign(text, &number)) return;
    for (int i = 0; i < decimals; i++) unit *= 10;
    if (number * (double)unit > 1e18) {
        text_add_scientific(text, number);
        return;
    }
    unsigned long long scaled = (unsigned long long)(number * (double)unit + 0.5);
    text_add_integer(text, scaled / unit);
    if (!decimals) return;
    add_character(text, '.');
    for (scaled %= unit; unit > 1; scaled %= unit) {
        unit /= 10;
        add_character(text, (char)('0' + scaled / unit));
    }
}

void text_add_scientific(struct text *text, double number) {
    int exponent = 0;
    if (!add_sign(text, &number)) return;
    for (; number >= 9.995; exponent++) number /= 10;
    for (; number && number < 0.9995; exponent--) number *= 10;
    text_add_fixed(text, number, 2);
    text_add(text, exponent < 0 ? "e-" : "e+");
    if (exponent < 0) exponent = -exponent;
    if (exponent < 10) add_character(text, '0');
    text_add_integer(text, (unsigned long long)exponent);
}
