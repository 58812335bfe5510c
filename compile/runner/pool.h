/* Threads that compute parts of the same work, and the barrier between its steps.
 *
 * Waiting threads spin, first for the next step, then for the next call; after some hundred
 * microseconds without a call they sleep in the kernel.
 */
#ifndef BIGNAS_POOL_H
#define BIGNAS_POOL_H

enum { POOL_MOST_THREADS = 64 };
enum { POOL_STACK_BYTES = 1 << 21 }; /* of a thread; kernels take up to a half, see compile/winograd.py */

/* One call of a work by `parts` threads. */
struct pool_call {
    int parts;
    unsigned arrivals; /* at the barrier that was passed last */
};

typedef void (*pool_work)(void *argument, int part, struct pool_call *call);

/* Run `work` in parts 0 .. parts-1 at once, part 0 in this thread; returns when all are through. Every
 * call asks for the same number. Where threads cannot be started, or while another thread uses the
 * pool, one part does everything. */
void pool_run(pool_work work, void *argument, int parts);

/* Wait until every part of the call has come here; what they wrote before is visible after. */
void pool_barrier(struct pool_call *call);

/* The tasks of one part: from pool_share(n, part) to pool_share(n, part + 1). */
static inline int pool_share(int tasks, int part, const struct pool_call *call) {
    return (int)((long long)tasks * part / call->parts);
}

/* End the threads; the pool is not used any more. */
void pool_stop(void);

/* In a process that was forked: there are no threads yet. */
void pool_forget(void);

/* Of the system: start a thread that runs `start(number)`, or return -1; sleep while
 * *word is `seen`; wake all that sleep on it; let another thread run. */
int pool_start_thread(void (*start)(int), int number);
void pool_sleep(unsigned *word, unsigned seen);
void pool_wake(unsigned *word);
void pool_yield(void);

#endif
