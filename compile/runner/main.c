/* The runner of a bundle: reads the options, checks the processor, then does what is asked. */
#include "commands.h"
#include "cpu.h"
#include "settings.h"
#include "system.h"

static const char usage[] =
    "Usage: run --self-check [--json]         check processor, then outputs against golden ones\n"
    "       run --bench [--json]              measure the latency\n"
    "       run --input X.bin --output Y.bin  run on images: raw float32, one after the other\n";

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

int run_program(int count, char **arguments) {
    const char *input = NULL, *output = NULL;
    int checking = 0, benching = 0, as_json = 0;
    if (count < 1) return BAD_INPUT;
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
    if (checking) return self_check(arguments[0], as_json);
    return benching ? bench(as_json) : run_file(input, output);
}
