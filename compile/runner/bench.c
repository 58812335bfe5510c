/* Measures the latency of the network: samples of about a millisecond, each a mean of runs. */
#include "bignas.h"
#include "commands.h"
#include "settings.h"
#include "system.h"

enum { SAMPLES = 100 };
static const double SAMPLE_NS = 1e6;

/* An emulator of single programs answers for the program in /proc/self, not in /proc/thread-self.
 */
static int is_emulated(void) {
    char self[LONGEST_PATH], thread[LONGEST_PATH];
    system_read_link("/proc/self/exe", self, sizeof self);
    system_read_link("/proc/thread-self/exe", thread, sizeof thread);
    return self[0] && thread[0] && !text_equal(self, thread);
}

static void sort(double *values, int count) {
    for (int i = 1; i < count; i++) {
        double one = values[i];
        int place = i;
        for (; place > 0 && values[place - 1] > one; place--) values[place] = values[place - 1];
        values[place] = one;
    }
}

/* Linear between neighbours, as NumPy's. */
static double quantile(const double *sorted, int count, double share) {
    double position = share * (count - 1);
    int below = (int)position;
    double rest = position - below;
    return below + 1 < count ? sorted[below] * (1 - rest) + sorted[below + 1] * rest
                             : sorted[below];
}

static void fill(float *values, size_t count) {
    unsigned state = 1;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = (float)(int)(state >> 8) / 8388608.0f - 1.0f;
    }
}

static void measure(const float *input, float *output, void *workspace, double *samples) {
    double once;
    int inner = 1;
    bignas_time(input, output, workspace, 1, 1, &once); /* caches */
    for (double spent = 0; spent < 50e6; spent += once * inner) { /* clock frequency, inner */
        bignas_time(input, output, workspace, inner, 1, &once);
        if (once * inner < SAMPLE_NS) inner = once > 1 ? (int)(SAMPLE_NS / once) + 1 : inner * 2;
    }
    bignas_time(input, output, workspace, inner, SAMPLES, samples);
    sort(samples, SAMPLES);
}

static void add_milliseconds(struct text *text, const char *words, double nanoseconds) {
    text_add(text, words);
    text_add_fixed(text, nanoseconds / 1e6, 6);
}

int bench(int as_json) {
    double samples[SAMPLES];
    float *output;
    void *workspace;
    float *input = system_allocate(bignas_input_floats() * sizeof(float));
    int code = prepare(&output, &workspace);
    if (!code && !input) code = refuse(FAILED, "not enough memory to run", "", "");
    if (code) return code;
    fill(input, bignas_input_floats());
    measure(input, output, workspace, samples);
    struct text text = {0};
    add_milliseconds(&text, as_json ? "{\"latency_ms\": {\"min\": " : "min ", samples[0]);
    add_milliseconds(&text, as_json ? ", \"p50\": " : " ms, p50 ", quantile(samples, SAMPLES, 0.5));
    add_milliseconds(&text, as_json ? ", \"p90\": " : " ms, p90 ", quantile(samples, SAMPLES, 0.9));
    text_add(&text, as_json ? ", \"n\": " : " ms, n ");
    text_add_integer(&text, SAMPLES);
    text_add(&text, as_json ? "}, \"device\": \"" : ", device ");
    text_add(&text, settings_device);
    text_add(&text, as_json ? "\", \"threads\": " : ", threads ");
    text_add_integer(&text, (unsigned long long)settings_threads);
    text_add(&text, as_json ? ", \"kind\": \"" : ", ");
    text_add(&text, is_emulated() ? "emulated" : "measured");
    text_add(&text, as_json ? "\"}\n" : "\n");
    return say(&text);
}
