/* What the runner can do, one function a file, and what these share.
 *
 * Exit codes: 0 done; 1 the work failed (outputs differ, no memory); 2 bad input, with one line
 * that says what is wrong.
 */
#ifndef BIGNAS_COMMANDS_H
#define BIGNAS_COMMANDS_H

#include "text.h"

enum { DONE = 0, FAILED = 1, BAD_INPUT = 2 };
enum { LONGEST_PATH = 4096 };

/* Each returns the exit code. */
int self_check(const char *program, int as_json);
int bench(int as_json);
int run_file(const char *source, const char *destination);

/* Says one line of three parts on standard error and returns `code`. */
int refuse(int code, const char *one, const char *two, const char *three);

/* Says in words what the number of an error means. */
const char *reason(int error);

/* Prints a result; returns DONE, or the exit code when that fails. */
int say(const struct text *text);

/* Allocates what a run needs: one image's output and the workspace; returns DONE, or FAILED. */
int prepare(float **output, void **workspace);

#endif
