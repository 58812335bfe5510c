/* The few services of Linux that the runner needs, called directly: it links no C library.
 *
 * A static glibc alone is 680 kB; this is 2 kB, and the program runs in an empty file system.
 */
#ifndef BIGNAS_SYSTEM_H
#define BIGNAS_SYSTEM_H

#include <stddef.h>

enum { STANDARD_OUTPUT = 1, STANDARD_ERROR = 2 };

struct bytes {
    const void *data;
    size_t size;
};

/* The program: arguments as in C, returns the exit code. */
int run_program(int count, char **arguments);

/* A system call; returns minus the number of the error where it fails. */
long system_call(long number, long a, long b, long c, long d, long e, long f);

/* A value of the auxiliary vector (getauxval of other systems), 0 where it is absent. */
unsigned long system_auxiliary(unsigned long key);

/* Zeroed memory that starts at a page, or NULL. */
void *system_allocate(size_t size);

/* Map a regular file. Returns 0, or the number of the error. */
int system_read_file(const char *path, struct bytes *content);

/* Write a file completely or not at all, through a temporary file beside it; a device is written
 * as it is. Returns 0, or the number of the error. */
int system_write_file(const char *path, const void *data, size_t size);

/* Write to a descriptor that is open. Returns 0, or the number of the error. */
int system_write(int descriptor, const void *data, size_t size);

/* Where a symbolic link points, or "" when it cannot be read. */
void system_read_link(const char *path, char *target, size_t size);

#endif
