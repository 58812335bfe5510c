/* The runner of a bundle: checks the network, measures it, or runs it on a file.
 *
 * Exit codes: 0 done; 1 the work failed (outputs differ, no memory); 2 bad input, with one line
 * that says what is wrong.
 */
#include "bignas.h"
#include "cpu.h"
#include "npy.h"
#include "settings.h"
#include "system.h"
#include "text.h"

enum { DONE = 0, FAILED = 1, BAD_INPUT = 2 };
enum { SAMPLES = 100, LONGEST_PATH = 4096 };
static const double SAMPLE_NS = 1e6;

static const char usage[] =
    "Usage: run --self-check [--json]         check processor, then outputs against golden ones\n"
    "       run --bench [--json]              measure the latency\n"
    "       run --input X.bin --output Y.bin  run on images: raw float32, one after the other\n";

static const char *program = "run";

/* ---- messages ---- */

/* Says one line on standard error and returns `code`. */
static int refuse(int code, const char *one, const char *two, const char *three) {
    struct text line = {0};
    text_add(&line, "error: ");
    text_add(&line, one);
    text_add(&line, two);
    text_add(&line, three);
    text_add(&line, "\n");
    system_write(STANDARD_ERROR, line.characters, line.length);
    return code;
}

static const char *reason(int error) {
    switch (error) {
        case 1:
        case 13: return "permission denied";
        case 2: return "no such file or folder";
        case 12: return "out of memory";
        case 20: return "a part of the path is a file, not a folder";
        case 21: return "a folder stands in its place";
        case 22: return "not a regular file";
        case 27:
        case 28:
        case 122: return "disk full";
        case 30: return "read-only file system";
        case 36: return "the name is too long";
        default: return "input or output failed";
    }
}

static int say(const struct text *text) {
    int error = system_write(STANDARD_OUTPUT, text->characters, text->length);
    return error ? refuse(BAD_INPUT, "cannot write the result: ", reason(error), "") : DONE;
}

/* ---- the network ---- */

/* Memory that a run needs: one image's output and the workspace; 0, or an exit code. */
static int prepare(float **output, void **workspace) {
    *output = system_allocate(bignas_output_floats() * sizeof(float));
    *workspace = system_allocate(bignas_workspace_bytes() + BIGNAS_ALIGNMENT);
    return *output && *workspace ? DONE : refuse(FAILED, "not enough memory to run", "", "");
}

static int check_processor(void) {
    const char *missing = cpu_lacks(settings_features);
    if (!missing) return DONE;
    struct text line = {0};
    text_add(&line, "this processor lacks ");
    text_add(&line, missing);
    text_add(&line, ", the bundle is built for ");
    text_add(&line, settings_processor);
    return refuse(BAD_INPUT, line.characters, ": compile it for this device", "");
}

/* ---- self-check ---- */

/* Writes the path of a file that lies beside this program. */
static void beside(const char *name, struct text *path) {
    char self[LONGEST_PATH];
    size_t length = 0;
    system_read_link("/proc/self/exe", self, sizeof self);
    const char *place = self[0] ? self : program;
    for (size_t i = 0; place[i]; i++) {
        if (place[i] == '/') length = i + 1;
    }
    text_add(path, place);
    path->length = length < path->length ? length : path->length;
    path->characters[path->length] = 0;
    text_add(path, name);
}

static int read_golden(const char *name, size_t columns, struct array *array) {
    struct text path = {0};
    struct bytes file;
    beside(name, &path);
    int error = system_read_file(path.characters, &file);
    if (error) return refuse(BAD_INPUT, "cannot read ", path.characters, error == 2
                             ? ": it belongs beside this program" : ": unreadable");
    if (npy_read(file, array) || !array->rows || array->columns != columns) {
        return refuse(BAD_INPUT, path.characters, " is damaged, or of another network", "");
    }
    return DONE;
}

static size_t largest(const float *values, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++) {
        if (values[i] > values[best]) best = i;
    }
    return best;
}

static double magnitude(double number) { return number < 0 ? -number : number; }

static int self_check(int as_json) {
    struct array inputs, expected;
    size_t in = bignas_input_floats(), out = bignas_output_floats(), agreeing = 0;
    double worst = 0, scale = 1;
    int finite = 1;
    float *output;
    void *workspace;
    int code = read_golden("golden_inputs.npy", in, &inputs);
    if (!code) code = read_golden("golden_outputs.npy", out, &expected);
    if (!code && inputs.rows != expected.rows) {
        code = refuse(BAD_INPUT, "golden inputs and outputs differ in number", "", "");
    }
    if (!code) code = prepare(&output, &workspace);
    if (code) return code;
    for (size_t row = 0; row < inputs.rows; row++) {
        const float *wanted = expected.values + row * out;
        bignas_run(inputs.values + row * in, output, workspace);
        for (size_t i = 0; i < out; i++) {
            double error = magnitude((double)output[i] - wanted[i]);
            if (!(error <= 3e38)) finite = 0;
            if (error > worst) worst = error;
            if (magnitude(wanted[i]) > scale) scale = magnitude(wanted[i]);
        }
        agreeing += largest(output, out) == largest(wanted, out);
    }
    int ok = finite && worst <= settings_tolerance * scale;
    struct text text = {0};
    text_add(&text, as_json ? "{\"ok\": " : "self-check ");
    text_add(&text, as_json ? (ok ? "true" : "false") : (ok ? "passed" : "FAILED"));
    text_add(&text, as_json ? ", \"max_abs_error\": " : ": max abs error ");
    if (finite) text_add_scientific(&text, worst);
    else text_add(&text, as_json ? "null" : "infinite");
    text_add(&text, as_json ? ", \"top1_agreement\": " : ", top-1 agreement ");
    text_add_fixed(&text, (double)agreeing / (double)inputs.rows * (as_json ? 1 : 100),
                   as_json ? 6 : 1);
    text_add(&text, as_json ? ", \"images\": " : "% of ");
    text_add_integer(&text, inputs.rows);
    text_add(&text, as_json ? "}\n" : " images\n");
    code = say(&text);
    return code ? code : ok ? DONE : FAILED;
}

/* ---- bench ---- */

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

static int bench(int as_json) {
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

/* ---- run on a file ---- */

static int run_file(const char *source, const char *destination) {
    struct bytes file;
    void *workspace;
    float *output;
    size_t in = bignas_input_floats(), out = bignas_output_floats();
    size_t image_bytes = in * sizeof(float);
    int error = system_read_file(source, &file);
    if (error) {
        struct text line = {0};
        text_add(&line, source);
        text_add(&line, ": ");
        return refuse(BAD_INPUT, "cannot read ", line.characters, reason(error));
    }
    if (!file.size || file.size % image_bytes) {
        struct text line = {0};
        text_add(&line, source);
        text_add(&line, " holds ");
        text_add_integer(&line, file.size);
        text_add(&line, " bytes, the network takes ");
        text_add_integer(&line, image_bytes);
        return refuse(BAD_INPUT, line.characters, " an image, raw float32", "");
    }
    size_t images = file.size / image_bytes;
    int code = prepare(&output, &workspace);
    float *outputs = system_allocate(images * out * sizeof(float));
    if (!code && !outputs) code = refuse(FAILED, "not enough memory to run", "", "");
    if (code) return code;
    for (size_t i = 0; i < images; i++) {
        bignas_run((const float *)file.data + i * in, outputs + i * out, workspace);
    }
    error = system_write_file(destination, outputs, images * out * sizeof(float));
    if (error) {
        struct text line = {0};
        text_add(&line, destination);
        text_add(&line, ": ");
        return refuse(BAD_INPUT, "cannot write ", line.characters, reason(error));
    }
    return DONE;
}

/* ---- options ---- */

int run_program(int count, char **arguments) {
    const char *input = NULL, *output = NULL;
    int checking = 0, benching = 0, as_json = 0;
    if (count > 0) program = arguments[0];
    for (int i = 1; i < count; i++) {
        const char *one = arguments[i];
        int has_value = text_equal(one, "--input") || text_equal(one, "--output");
        if (has_value && i + 1 == count) return refuse(BAD_INPUT, one, " needs a file", "");
        if (text_equal(one, "--help")) {
            return system_write(STANDARD_OUTPUT, usage, sizeof usage - 1) ? BAD_INPUT : DONE;
        }
        if (text_equal(one, "--self-check")) checking = 1;
        else if (text_equal(one, "--bench")) benching = 1;
        else if (text_equal(one, "--json")) as_json = 1;
        else if (text_equal(one, "--input")) input = arguments[++i];
        else if (text_equal(one, "--output")) output = arguments[++i];
        else return refuse(BAD_INPUT, "unknown option ", one, "; see --help");
    }
    if (!input != !output) return refuse(BAD_INPUT, "--input and --output belong together", "", "");
    if (checking + benching + !!input != 1) {
        return refuse(BAD_INPUT, "give one of --self-check, --bench, --input with --output",
                      "; see --help", "");
    }
    if (input && as_json) return refuse(BAD_INPUT, "--json belongs to --self-check or --bench",
                                        "", "");
    int code = check_processor();
    if (code) return code;
    if (checking) return self_check(as_json);
    return benching ? bench(as_json) : run_file(input, output);
}
