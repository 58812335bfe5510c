/* Start of the program, system calls of Linux, and the functions of C that compilers call. */
#define _POSIX_C_SOURCE 199309L
#include "system.h"

#include "text.h"

#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
__asm__(".globl bignas_start\n"
        "bignas_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call system_start\n");

long system_call(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
__asm__(".globl bignas_start\n"
        "bignas_start:\n"
        "    mov x29, #0\n"
        "    mov x30, #0\n"
        "    mov x0, sp\n"
        "    and sp, x0, #-16\n"
        "    b system_start\n");

long system_call(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}
#elif defined(__riscv) && __riscv_xlen == 64
__asm__(".globl bignas_start\n"
        "bignas_start:\n"
        "    .option push\n"
        "    .option norelax\n"
        "    lla gp, __global_pointer$\n"
        "    .option pop\n"
        "    mv a0, sp\n"
        "    andi sp, sp, -16\n"
        "    tail system_start\n");

long system_call(long number, long a, long b, long c, long d, long e, long f) {
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5)
                     : "memory");
    return a0;
}
#else
#error "the runner knows x86-64, aarch64 and riscv64"
#endif

enum {
    SEEK_TO_END = 2,
    PROTECTION_READ = 1,
    PROTECTION_WRITE = 2,
    MAP_PRIVATE_COPY = 2,
    MAP_OF_NO_FILE = 32,
    FILE_TYPE = 0170000,
    REGULAR_FILE = 0100000,
    FOLDER = 0040000,
};

static const unsigned long *auxiliary;

_Noreturn static void leave(int code) {
    for (;;) system_call(__NR_exit_group, code, 0, 0, 0, 0, 0);
}

/* The environment ends with a 0; auxiliary pairs follow. A C library starts the program here. */
int main(int count, char **arguments, char **environment) {
    while (*environment) environment++;
    auxiliary = (const unsigned long *)(environment + 1);
    return run_program(count, arguments);
}

/* The stack that the kernel prepares: count, arguments, 0, environment, 0, auxiliary pairs, 0. */
_Noreturn void system_start(long *stack) __attribute__((used));
_Noreturn void system_start(long *stack) {
    char **arguments = (char **)(stack + 1);
    leave(main((int)*stack, arguments, arguments + *stack + 1));
}

unsigned long system_auxiliary(unsigned long key) {
    for (const unsigned long *pair = auxiliary; pair[0]; pair += 2) {
        if (pair[0] == key) return pair[1];
    }
    return 0;
}

static void *map(size_t size, int protection, int flags, long descriptor) {
    long place = system_call(__NR_mmap, 0, (long)size, protection, flags, descriptor, 0);
    return place < 0 && place > -4096 ? NULL : (void *)place;
}

void *system_allocate(size_t size) {
    return map(size, PROTECTION_READ | PROTECTION_WRITE, MAP_PRIVATE_COPY | MAP_OF_NO_FILE, -1);
}

/* Returns the type bits of what is at the path, or minus the number of the error. */
static int type_at(const char *path, uint64_t *size) {
    struct statx status;
    long result = system_call(__NR_statx, AT_FDCWD, (long)path, 0, STATX_TYPE | STATX_SIZE,
                       (long)&status, 0);
    if (result < 0) return (int)result;
    if (size) *size = status.stx_size;
    return status.stx_mode & FILE_TYPE;
}

int system_read_file(const char *path, struct bytes *content) {
    uint64_t size = 0;
    int type = type_at(path, &size);
    if (type < 0) return -type;
    if (type != REGULAR_FILE) return EINVAL;
    long descriptor = system_call(__NR_openat, AT_FDCWD, (long)path, O_RDONLY, 0, 0, 0);
    if (descriptor < 0) return (int)-descriptor;
    content->data = "";
    content->size = (size_t)size;
    if (size) content->data = map(content->size, PROTECTION_READ, MAP_PRIVATE_COPY, descriptor);
    system_call(__NR_close, descriptor, 0, 0, 0, 0, 0);
    return content->data ? 0 : ENOMEM;
}

int system_write(int descriptor, const void *data, size_t size) {
    const char *rest = data;
    while (size) {
        long written = system_call(__NR_write, descriptor, (long)rest, (long)size, 0, 0, 0);
        if (written == -EINTR) continue;
        if (written < 0) return (int)-written;
        rest += written;
        size -= (size_t)written;
    }
    return 0;
}

static int write_at(const char *path, int flags, const void *data, size_t size) {
    long descriptor = system_call(__NR_openat, AT_FDCWD, (long)path, O_WRONLY | flags, 0666, 0, 0);
    if (descriptor < 0) return (int)-descriptor;
    int error = system_write((int)descriptor, data, size);
    if (!error && flags) error = (int)-system_call(__NR_fsync, descriptor, 0, 0, 0, 0, 0);
    system_call(__NR_close, descriptor, 0, 0, 0, 0, 0);
    return error;
}

int system_write_file(const char *path, const void *data, size_t size) {
    struct text temporary = {0};
    int type = type_at(path, NULL);
    if (type < 0 && type != -ENOENT) return -type;
    if (type == FOLDER) return EISDIR;
    if (type >= 0 && type != REGULAR_FILE) return write_at(path, 0, data, size);
    text_add(&temporary, path);
    text_add(&temporary, ".");
    text_add_integer(&temporary, (unsigned long long)system_call(__NR_getpid, 0, 0, 0, 0, 0, 0));
    text_add(&temporary, ".tmp");
    int error = write_at(temporary.characters, O_CREAT | O_EXCL, data, size);
    if (error == EEXIST) return error;
    if (!error) {
        error = (int)-system_call(__NR_renameat2, AT_FDCWD, (long)temporary.characters, AT_FDCWD,
                           (long)path, 0, 0);
    }
    if (error) system_call(__NR_unlinkat, AT_FDCWD, (long)temporary.characters, 0, 0, 0, 0);
    return error;
}

void system_read_link(const char *path, char *target, size_t size) {
    long length = system_call(__NR_readlinkat, AT_FDCWD, (long)path, (long)target, (long)size - 1, 0, 0);
    target[length < 0 ? 0 : length] = 0;
}

/* What runtime.c, the call plan and compilers expect of a C library. The empty statement keeps
 * compilers from replacing the loops by calls of the function they stand in. All are weak: where the
 * kernels need a C library after all, its own take their place. */
#define WEAK __attribute__((weak))

WEAK int clock_gettime(clockid_t clock, struct timespec *now) {
    return (int)system_call(__NR_clock_gettime, clock, (long)now, 0, 0, 0, 0);
}

WEAK void *memcpy(void *restrict target, const void *restrict source, size_t size) {
    for (size_t i = 0; i < size; i++) {
        ((char *)target)[i] = ((const char *)source)[i];
        __asm__ volatile("");
    }
    return target;
}

WEAK void *memmove(void *target, const void *source, size_t size) {
    char *to = target;
    const char *from = source;
    for (size_t i = 0; i < size; i++) {
        size_t place = to < from ? i : size - 1 - i;
        to[place] = from[place];
        __asm__ volatile("");
    }
    return target;
}

WEAK void *memset(void *target, int value, size_t size) {
    for (size_t i = 0; i < size; i++) {
        ((char *)target)[i] = (char)value;
        __asm__ volatile("");
    }
    return target;
}

WEAK int memcmp(const void *left, const void *right, size_t size) {
    for (size_t i = 0; i < size; i++) {
        int difference = ((const unsigned char *)left)[i] - ((const unsigned char *)right)[i];
        __asm__ volatile("");
        if (difference) return difference;
    }
    return 0;
}
