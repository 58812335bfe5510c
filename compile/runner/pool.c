/* The threads of a network with more than one: started once, then spinning or asleep. */
#include "pool.h"

enum { SPINS_BEFORE_SLEEP = 10000, SPINS_BEFORE_YIELD = 5000 };

static int busy;             /* 1 while a call is under way */
static int threads = 1;      /* that run, the caller's included */
static unsigned generation;  /* counts calls */
static unsigned sleepers;
static int stopping;
static unsigned arrived; /* at barriers, ever */
static pool_work current_work;
static void *current_argument;
static struct pool_call current_call;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void pool_barrier(struct pool_call *call) {
    if (call->parts == 1) return;
    call->arrivals += (unsigned)call->parts;
    __atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL);
    for (int spins = 0; (int)(__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) - call->arrivals) < 0;) {
        relax();
        if (++spins % SPINS_BEFORE_YIELD == 0) pool_yield();
    }
}

static void serve(int number) {
    for (unsigned seen = 0;; seen++) {
        for (int spins = 0; __atomic_load_n(&generation, __ATOMIC_ACQUIRE) == seen; spins++) {
            relax();
            if (spins < SPINS_BEFORE_SLEEP) continue;
            __atomic_add_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
            pool_sleep(&generation, seen);
            __atomic_sub_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
        }
        if (__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) return;
        struct pool_call call = current_call;
        current_work(current_argument, number, &call);
        pool_barrier(&call);
    }
}

static void start_threads(int wanted) {
    if (wanted > POOL_MOST_THREADS) return;
    while (threads < wanted && !pool_start_thread(serve, threads)) threads++;
}

static void announce(void) {
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&sleepers, __ATOMIC_SEQ_CST)) pool_wake(&generation);
}

void pool_run(pool_work work, void *argument, int parts) {
    struct pool_call call = {1, 0};
    if (parts == 1 || __atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE)) {
        work(argument, 0, &call);
        return;
    }
    if (generation == 0) start_threads(parts);
    call.parts = threads == parts ? parts : 1;
    if (call.parts == 1) {
        work(argument, 0, &call);
    } else {
        call.arrivals = __atomic_load_n(&arrived, __ATOMIC_ACQUIRE);
        current_work = work;
        current_argument = argument;
        current_call = call;
        announce();
        work(argument, 0, &call);
        pool_barrier(&call);
    }
    __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
}

void pool_stop(void) {
    __atomic_store_n(&stopping, 1, __ATOMIC_RELEASE);
    announce();
}

void pool_forget(void) {
    busy = 0;
    threads = 1;
    generation = sleepers = arrived = 0;
}
