/* What the commands say, and the memory they ask for. */
#include "bignas.h"
#include "commands.h"
#include "system.h"

#include <linux/errno.h>

int refuse(int code, const char *one, const char *two, const char *three) {
    struct text line = {0};
    text_add(&line, "error: ");
    text_add(&line, one);
    text_add(&line, two);
    text_add(&line, three);
    text_add(&line, "\n");
    system_write(STANDARD_ERROR, line.characters, line.length);
    return code;
}

const char *reason(int error) {
    switch (error) {
        case EPERM:
        case EACCES: return "permission denied";
        case ENOENT: return "no such file or folder";
        case ENOMEM: return "out of memory";
        case ENOTDIR: return "a part of the path is a file, not a folder";
        case EISDIR: return "a folder stands in its place";
        case EINVAL: return "not a regular file";
        case EFBIG:
        case ENOSPC:
        case EDQUOT: return "disk full";
        case EROFS: return "read-only file system";
        case ENAMETOOLONG: return "the name is too long";
        default: return "input or output failed";
    }
}

int say(const struct text *text) {
    int error = system_write(STANDARD_OUTPUT, text->characters, text->length);
    return error ? refuse(BAD_INPUT, "cannot write the result: ", reason(error), "") : DONE;
}

int prepare(float **output, void **workspace) {
    *output = system_allocate(bignas_output_floats() * sizeof(float));
    *workspace = system_allocate(bignas_workspace_bytes() + BIGNAS_ALIGNMENT);
    return *output && *workspace ? DONE : refuse(FAILED, "not enough memory to run", "", "");
}
