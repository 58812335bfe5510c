/* Which instructions this processor has: asked of itself on x86-64, of Linux elsewhere. */
#include "cpu.h"

#include "system.h"
#include "text.h"

struct feature {
    const char *name;
    int word; /* of `words` below */
    int bit;
};

#if defined(__x86_64__)
#include <cpuid.h>

enum { LEAF_1_ECX, LEAF_7_EBX, LEAF_EXTENDED_ECX, WORDS };
enum { VECTOR_256 = 0x6, VECTOR_512 = 0xe6 }; /* registers that the system saves */

static const struct feature known[] = {
    {"sse3", LEAF_1_ECX, 0},        {"ssse3", LEAF_1_ECX, 9},     {"fma", LEAF_1_ECX, 12},
    {"cx16", LEAF_1_ECX, 13},       {"sse4.1", LEAF_1_ECX, 19},   {"sse4.2", LEAF_1_ECX, 20},
    {"movbe", LEAF_1_ECX, 22},      {"popcnt", LEAF_1_ECX, 23},   {"avx", LEAF_1_ECX, 28},
    {"f16c", LEAF_1_ECX, 29},       {"bmi", LEAF_7_EBX, 3},       {"avx2", LEAF_7_EBX, 5},
    {"bmi2", LEAF_7_EBX, 8},        {"avx512f", LEAF_7_EBX, 16},  {"avx512dq", LEAF_7_EBX, 17},
    {"avx512cd", LEAF_7_EBX, 28},   {"avx512bw", LEAF_7_EBX, 30}, {"avx512vl", LEAF_7_EBX, 31},
    {"sahf", LEAF_EXTENDED_ECX, 0}, {"lzcnt", LEAF_EXTENDED_ECX, 5},
};

static void read_words(unsigned long *words) {
    unsigned a, b, c, d;
    words[LEAF_1_ECX] = __get_cpuid(1, &a, &b, &c, &d) ? c : 0;
    words[LEAF_7_EBX] = __get_cpuid_count(7, 0, &a, &b, &c, &d) ? b : 0;
    words[LEAF_EXTENDED_ECX] = __get_cpuid(0x80000001, &a, &b, &c, &d) ? c : 0;
    unsigned saved = 0;
    if (words[LEAF_1_ECX] >> 27 & 1) {
        __asm__ volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    }
    if ((saved & VECTOR_256) != VECTOR_256) {
        words[LEAF_1_ECX] &= ~(1ul << 28 | 1ul << 29 | 1ul << 12);
        words[LEAF_7_EBX] &= ~(1ul << 5);
    }
    if ((saved & VECTOR_512) != VECTOR_512) {
        words[LEAF_7_EBX] &= ~(1ul << 16 | 1ul << 17 | 1ul << 28 | 1ul << 30 | 1ul << 31);
    }
}
#else
enum { HARDWARE, WORDS };
enum { AUXILIARY_HARDWARE = 16 }; /* AT_HWCAP */

#if defined(__aarch64__)
static const struct feature known[] = {
    {"neon", HARDWARE, 1},      {"lse", HARDWARE, 8},  {"fullfp16", HARDWARE, 10},
    {"rdm", HARDWARE, 12},      {"dotprod", HARDWARE, 20},
};

static void read_words(unsigned long *words) {
    words[HARDWARE] = system_auxiliary(AUXILIARY_HARDWARE);
}
#else
static const struct feature known[] = {
    {"a", HARDWARE, 0}, {"c", HARDWARE, 2},  {"d", HARDWARE, 3},
    {"f", HARDWARE, 5}, {"m", HARDWARE, 12}, {"v", HARDWARE, 21},
};

enum { VECTORS = 21, SHORTEST_VECTOR = 16 }; /* bit of "v"; bytes that kernels rely on */

static unsigned long vector_bytes(void) {
    unsigned long bytes;
    __asm__ volatile("csrr %0, 0xc22" : "=r"(bytes)); /* vlenb */
    return bytes;
}

static void read_words(unsigned long *words) {
    words[HARDWARE] = system_auxiliary(AUXILIARY_HARDWARE);
    if (words[HARDWARE] >> VECTORS & 1 && vector_bytes() < SHORTEST_VECTOR) {
        words[HARDWARE] &= ~(1ul << VECTORS);
    }
}
#endif
#endif

static int has(const unsigned long *words, const char *name) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (text_equal(known[i].name, name)) return words[known[i].word] >> known[i].bit & 1;
    }
    return 0;
}

const char *cpu_lacks(const char *const *features) {
    unsigned long words[WORDS];
    read_words(words);
    for (; *features; features++) {
        if (!has(words, *features)) return *features;
    }
    return NULL;
}
