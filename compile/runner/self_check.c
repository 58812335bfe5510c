/* Runs the golden inputs that lie beside the program, and compares with the golden outputs. */
#include "bignas.h"
#include "commands.h"
#include "npy.h"
#include "settings.h"
#include "system.h"

/* Writes the path of a file that lies beside this program. */
static void beside(const char *program, const char *name, struct text *path) {
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

static int read_golden(const char *program, const char *name, size_t columns,
                       struct array *array) {
    struct text path = {0};
    struct bytes file;
    beside(program, name, &path);
    int error = system_read_file(path.characters, &file);
    if (error) {
        text_add(&path, ": ");
        text_add(&path, reason(error));
        return refuse(BAD_INPUT, "cannot read ", path.characters,
                      "; it belongs beside this program");
    }
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

int self_check(const char *program, int as_json) {
    struct array inputs, expected;
    size_t in = bignas_input_floats(), out = bignas_output_floats(), agreeing = 0;
    double worst = 0, scale = 1;
    int finite = 1;
    float *output;
    void *workspace;
    int code = read_golden(program, "golden_inputs.npy", in, &inputs);
    if (!code) code = read_golden(program, "golden_outputs.npy", out, &expected);
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
