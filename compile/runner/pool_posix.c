/* Threads of the pool where there is a C library: in shared libraries and in the measuring program. */
#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_t started[POOL_MOST_THREADS];
static int count;
static void (*serve)(int);

static void *begin(void *number) {
    serve((int)(intptr_t)number);
    return 0;
}

/* A child that was forked has none of these threads. */
static void forget_threads(void) {
    count = 0;
    pool_forget();
}

/* Signals of the application are for its own threads. */
int pool_start_thread(void (*start)(int), int number) {
    static int registered;
    sigset_t all, before;
    if (!registered && pthread_atfork(0, 0, forget_threads)) return -1;
    registered = 1;
    serve = start;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (!error) {
        pthread_attr_setstacksize(&attributes, POOL_STACK_BYTES);
        error = pthread_create(&started[count], &attributes, begin, (void *)(intptr_t)number);
        pthread_attr_destroy(&attributes);
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
    if (error) return -1;
    count++;
    return 0;
}

/* The library may be unloaded: no thread may be in it then. */
__attribute__((destructor)) static void end_threads(void) {
    pool_stop();
    for (int i = 0; i < count; i++) pthread_join(started[i], 0);
}

void pool_sleep(unsigned *word, unsigned seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, 0, 0, 0);
}

void pool_wake(unsigned *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, POOL_MOST_THREADS, 0, 0, 0);
}

void pool_yield(void) { sched_yield(); }
