/* Runs the network on a file of images. */
#include "bignas.h"
#include "commands.h"
#include "system.h"

int run_file(const char *source, const char *destination) {
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
