/* Starts one program on a machine that runs a server of TVM's RPC, and watches it for the client.
 *
 * The server loads this library. Whatever is measured runs in a process of its own, so that a crash,
 * an illegal instruction or an endless loop costs that process and never the server. It ends with
 * the session of the client, and after its time is up in any case.
 *
 * Everything is in the folder of the session: `command` holds the program and its arguments, one a
 * line; `input` is its standard input; what it writes goes to `output` and `errors`.
 *
 * These are functions of TVM's foreign function interface (tvm/ffi/c_api.h of tvm-ffi 0.1): they take
 * and return values of 16 bytes. Nothing of TVM is linked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct value { /* TVMFFIAny */
    int32_t type;
    uint32_t padding;
    union {
        int64_t number;
        const char *text;
    };
};

enum { TYPE_INTEGER = 1, TYPE_TEXT = 8 }; /* kTVMFFIInt, kTVMFFIRawStr */
enum { RUNNING = -1, NOT_STARTED = -2, SIGNALLED = 256, CANNOT_RUN = 127 };
enum { MOST_ARGUMENTS = 64, MOST_BYTES = 1 << 16 };

static pid_t child;
static int alive = -1; /* the end of a pipe that closes when the program ends */
static int64_t ended = NOT_STARTED;

static int answer(struct value *result, int64_t number) {
    result->type = TYPE_INTEGER;
    result->padding = 0;
    result->number = number;
    return 0;
}

static void redirect(const char *path, int flags, int descriptor) {
    int file = open(path, flags, 0600);
    if (file < 0 || dup2(file, descriptor) < 0) _exit(CANNOT_RUN);
    close(file);
}

/* In the new process: become the program, or say why not. */
static void become(const char *folder, unsigned seconds, pid_t parent) {
    static char text[MOST_BYTES], *arguments[MOST_ARGUMENTS];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || chdir(folder)) _exit(CANNOT_RUN);
    setpgid(0, 0);
    redirect("input", O_RDONLY, STDIN_FILENO);
    redirect("output", O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
    redirect("errors", O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
    int file = open("command", O_RDONLY);
    ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (size <= 0) _exit(CANNOT_RUN);
    close(file);
    int count = 0;
    char *rest = NULL;
    for (char *one = strtok_r(text, "\n", &rest); one && count < MOST_ARGUMENTS - 1;
         one = strtok_r(NULL, "\n", &rest))
        arguments[count++] = one;
    if (count && arguments[0][0] == '.') chmod(arguments[0], 0700); /* it was uploaded */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGALRM, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    alarm(seconds); /* survives exec */
    execv(arguments[0], arguments);
    fprintf(stderr, "cannot run %s: %s\n", arguments[0], strerror(errno));
    fflush(stderr);
    _exit(CANNOT_RUN);
}

/* (folder, seconds): start the program of the folder; 0, or the number of an error. */
int __tvm_ffi_bignas_start(void *self, const struct value *arguments, int32_t count,
                           struct value *result) {
    (void)self;
    int ends[2];
    if (count != 2 || arguments[0].type != TYPE_TEXT || arguments[1].type != TYPE_INTEGER)
        return answer(result, EINVAL);
    if (ended == RUNNING) return answer(result, EBUSY);
    if (pipe(ends)) return answer(result, errno);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    pid_t parent = getpid();
    child = fork();
    if (child < 0) {
        close(ends[0]);
        close(ends[1]);
        return answer(result, errno);
    }
    if (!child) become(arguments[0].text, (unsigned)arguments[1].number, parent);
    close(ends[1]);
    if (alive >= 0) close(alive);
    alive = ends[0];
    ended = RUNNING;
    return answer(result, 0);
}

/* (milliseconds): wait so long for the end; exit status, 256 + signal, -1 while it runs. */
int __tvm_ffi_bignas_wait(void *self, const struct value *arguments, int32_t count,
                          struct value *result) {
    (void)self;
    int status;
    if (ended != RUNNING || count != 1) return answer(result, ended);
    struct pollfd end = {alive, POLLIN, 0};
    poll(&end, 1, (int)arguments[0].number);
    pid_t found = waitpid(child, &status, WNOHANG);
    if (found == child) {
        ended = WIFSIGNALED(status) ? SIGNALLED + WTERMSIG(status) : WEXITSTATUS(status);
        kill(-child, SIGKILL); /* what it may have started */
    } else if (found < 0) {
        ended = CANNOT_RUN;
    }
    return answer(result, ended);
}

/* (): end the program. */
int __tvm_ffi_bignas_stop(void *self, const struct value *arguments, int32_t count,
                          struct value *result) {
    (void)self, (void)arguments, (void)count;
    if (ended == RUNNING && kill(-child, SIGKILL)) kill(child, SIGKILL);
    return answer(result, 0);
}
