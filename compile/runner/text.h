/* Lines of text, put together from words and numbers. */
#ifndef BIGNAS_TEXT_H
#define BIGNAS_TEXT_H

#include <stddef.h>

struct text {
    size_t length;
    char characters[8192]; /* what does not fit is left out */
};

int text_equal(const char *left, const char *right);
void text_add(struct text *text, const char *words);
void text_add_integer(struct text *text, unsigned long long number);

/* A number with `decimals` digits after the point; `nan` and `inf` in words. */
void text_add_fixed(struct text *text, double number, int decimals);

/* A number such as 1.25e-07. */
void text_add_scientific(struct text *text, double number);

#endif
