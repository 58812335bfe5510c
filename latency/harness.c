/* Times kernels and networks, interleaved, in a process of its own.
 *
 * Reads settings and jobs, one a line, from standard input; writes results, one a line, to standard
 * output. Every round visits the jobs in a new random order, in groups of about a millisecond.
 * Two sentinels run before and after each group: the anchor, a kernel for the same processor as the
 * jobs, which shows how fast the core is, and a stream through the shared cache, which shows other
 * users of it. When the core changed meanwhile or is far from its reference, or the stream is slower
 * than it can be, the group's samples are put aside and it is repeated, a few times at once, then in
 * later rounds. Those put aside with the calmest sentinels fill up what is still missing after many
 * rounds, or when that took several times as long as usual. Groups in which everything fits into the
 * core's own cache are not judged by the shared one.
 *
 * Clocks rise and fall in steps, with what other cores do, and so does what wide vectors or a shared
 * front end get done in a cycle. Samples are given at the reference: divided by how much longer than
 * there the anchor took. Without an anchor a chain of dependent arithmetic stands in for it.
 *
 *   cpu N | threads N | rounds N | sample_ns N | seed N     (cpu: one line for each allowed core)
 *   cache N                                                 (bytes of the core's own cache)
 *   flush N                                                 (the same to empty it, or 0)
 *   core TOLERANCE NS FASTER | memory TOLERANCE NS          (NS: reference, 0 when there is none; the
 *                                                            core's tolerance is that of a change,
 *                                                            FASTER how many times as fast as its
 *                                                            reference it may be)
 *   find_ns N                                               (how long to look for a reference)
 *   kernel IN WEIGHTS BIAS OTHER OUT SCRATCH TASKS SYMBOL LIBRARY     (sizes in floats)
 *   anchor ... (as a kernel, of one task)
 *   network LIBRARY
 *   run
 *
 * Of a network with probes (compile/runner/probes.h) each call's time is reported too, as "steps JOB
 * CALL SAMPLE...": its kernel where it runs, without the look at the clock.
 *
 * LIBRARY is the rest of the line, so that its path may hold spaces. SCRATCH is what each thread
 * needs of its own in the place of OTHER. Under an emulator of single programs nothing is measured:
 * the only answer is "emulated".
 *
 * Kernels meet the caches as they will in their network. Their input was just written, and the other
 * kernels have run since the last call: before each call, foreign code and data take the place of its
 * own in the first-level caches, and the call alone is timed. Of several threads each has written its
 * share of what is read and of what is overwritten, in whose cache the others find it. What it takes the
 * threads to fetch their shares of the output from the caches of others is the kernel's time too: a
 * kernel divided by channels hands half of it over. Its weights are in the core's own cache
 * when those of the whole network are (flush 0). Otherwise each call has weights of its own, which are
 * read, and then pushed out of that cache, before the calls.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef void (*kernel_fn)(const float *, const float *, const float *, float *, float *, int, int);
typedef int (*network_fn)(const float *, float *, void *);
typedef const double *(*moments_fn)(void);

/* A sample is a row: the whole job, then each call of a network with probes. */
struct job {
    kernel_fn kernel;
    network_fn network;
    size_t sizes[5]; /* input, weights, bias, other, output; a network: input, -, -, workspace, output */
    size_t scratch; /* floats of each thread, a kernel's */
    int tasks, shares; /* shares: may need the shared cache */
    moments_fn moments; /* of a network with probes */
    int steps;
    char library[4096], symbol[128];
    int inner, count;
    double expected_ns;
    double *samples, *latest; /* rows */
    struct aside *aside; /* at most as many as there are rounds, the calmest */
    int aside_count;
};

/* A sample of a disturbed group, and how far that was from what is tolerated. */
struct aside {
    double *sample, disturbance;
};

static size_t row_of(const struct job *job) { return 1 + (size_t)job->steps; }

enum { GROUP = 4096 };
static const double GROUP_NS = 1e6, WARM_NS = 1e8;
static const double MOST_BETWEEN = 3; /* lengths of a sample that it takes with what is between calls */
enum { MOST_CALLS = 100000 };

enum { INPUT, WEIGHTS, BIAS, OTHER, OUTPUT, BUFFERS };
enum { ARENA_FLOATS = 1 << 21 }; /* for weights of several calls, when those are not near */
static float *buffers[BUFFERS];
static int threads = 1;
static size_t flushed_floats;
static volatile float sink;

static double now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* Sentinels and their reference: the tenth percentile of the latest readings, or what earlier runs on
 * this machine found. Neighbours make a core slower in changing ways, and stay away now and then: how
 * fast it is without them is what can be found again. Inputs are read from volatile variables, or the
 * compiler would compute the results itself. */
enum { CORE, MEMORY, SENTINELS, HISTORY = 1 << 15, WARM_UPS = 200 };
enum { ATTEMPTS = 6, LAPS = 5 }; /* at a group in a round; rounds there are at most, for one asked for */
static const double WAIT_NS = 3e9, WAIT_TIMES = 4; /* at most, beside so many times what is undisturbed */
enum { LINE_FLOATS = 16 };

static const double SLOWEST_CORE = 1.2, BEST = 0.1;
static double fastest_core; /* times as fast as the reference, as it is told */

struct sentinel {
    double readings[HISTORY], reference, best, tolerance;
    long count, next; /* readings so far, and after how many the best is looked for again */
};

static struct sentinel sentinels[SENTINELS];
static volatile float one = 1.0f, slope = 0.999f, offset = 0.001f;

/* What is streamed lies in several times the core's own cache, and each reading goes on where the last
 * one ended: none finds anything in that cache, whatever ran in between. */
enum { WINDOW_FLOATS = 1 << 17, OWN_CACHES = 3 };
static float *stream;
static size_t windows;

/* The anchor works on buffers of its own, each thread on its part of them. */
static struct job anchor;
static float *anchor_buffers[BUFFERS];
static int anchor_calls = 1; /* in a reading of ANCHOR_NS */
enum { CORE_TRIES = 5, CHAIN = 2000 };
static const double LONGEST_STALL = 2; /* of a reading, in shortest ones: more is no stall, but lost time */
static const double MOST_STALLS = 1.15; /* mean reading in shortest ones: above, nothing can be told */
enum { BLOCKS = 8 };                    /* of rounds, in which stalls are counted */
static double shortest_ns[BLOCKS], mean_ns[BLOCKS]; /* of the readings in each, added up */
static int block;
static const double ANCHOR_NS = 8000;

/* What calls kernels has its frame at a page, as in networks (compile/plan.py): kernels have arrays on the
 * stack, and where that starts is chance else. */
#define FRAME_AT_PAGE \
    _Alignas(4096) volatile char page[1] = {0}; \
    (void)page

static void run_core_sentinel(int part) {
    if (anchor.kernel) {
        FRAME_AT_PAGE;
        float *other = anchor_buffers[OTHER] + anchor.scratch * (size_t)part;
        float *output = anchor_buffers[OUTPUT] + anchor.sizes[OUTPUT] * (size_t)part;
        for (int i = 0; i < anchor_calls; i++)
            anchor.kernel(anchor_buffers[INPUT], anchor_buffers[WEIGHTS], anchor_buffers[BIAS], other,
                          output, 0, 1);
        return;
    }
    float value = one, a = slope, b = offset;
    for (int i = 0; i < CHAIN; i++) value = value * a + b;
    sink = value;
}

struct core_reading {
    double shortest, mean;
};

static void read_core_of_thread(void *readings, int part, struct pool_call *call) {
    (void)call;
    struct core_reading *mine = (struct core_reading *)readings + part;
    double passed[CORE_TRIES], shortest = 1e18, sum = 0;
    for (int attempt = 0; attempt < CORE_TRIES; attempt++) {
        double start = now_ns();
        run_core_sentinel(part);
        passed[attempt] = (now_ns() - start) / anchor_calls;
        if (passed[attempt] < shortest) shortest = passed[attempt];
    }
    for (int attempt = 0; attempt < CORE_TRIES; attempt++)
        sum += passed[attempt] < LONGEST_STALL * shortest ? passed[attempt] : LONGEST_STALL * shortest;
    mine->shortest = shortest;
    mine->mean = sum / CORE_TRIES;
}

/* Of the slowest thread: the shortest of a few readings tells how fast the core is. It misses stalls of
 * some microseconds, which hit samples as often as readings: those are counted over all readings around
 * samples that count. */
static struct core_reading read_core(void) {
    struct core_reading readings[POOL_MOST_THREADS] = {{0, 0}};
    pool_run(read_core_of_thread, readings, threads);
    int slowest = 0;
    for (int part = 0; part < threads; part++)
        if (readings[part].shortest > readings[slowest].shortest) slowest = part;
    return readings[slowest];
}

static double read_memory(void) {
    static size_t next;
    const float *from = stream + WINDOW_FLOATS * (next++ % windows);
    double start = now_ns();
    float a = 0, b = 0, c = 0, d = 0;
    for (int i = 0; i < WINDOW_FLOATS; i += 64) { /* one float of each cache line */
        a += from[i];
        b += from[i + 16];
        c += from[i + 32];
        d += from[i + 48];
    }
    sink = a + b + c + d;
    return now_ns() - start;
}

/* A line for whoever waits, at once. */
static void say(const char *word) {
    puts(word);
    fflush(stdout);
}

static int ascending(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void note(struct sentinel *it, double reading) {
    static double sorted[HISTORY];
    it->readings[it->count++ % HISTORY] = reading;
    if (it->count < it->next) return;
    size_t size = it->count < HISTORY ? (size_t)it->count : HISTORY;
    it->next = it->count + 10 + (long)size / 20;
    memcpy(sorted, it->readings, size * sizeof *sorted);
    qsort(sorted, size, sizeof *sorted, ascending);
    it->best = sorted[(size_t)((double)size * BEST)];
}

/* One look at the sentinels, at the stream only when it matters. */
struct look {
    double core, core_mean, memory;
};

static void count_stalls(struct look seen) {
    shortest_ns[block] += seen.core;
    mean_ns[block] += seen.core_mean;
}

/* What the readings took with stalls, in shortest ones: the median of several counts, so that bursts
 * of stalls do not count, which medians of samples do not show either. */
static double stalls_of_blocks(void) {
    double shares[BLOCKS];
    int count = 0;
    for (int i = 0; i < BLOCKS; i++)
        if (shortest_ns[i] > 0) shares[count++] = mean_ns[i] / shortest_ns[i];
    if (!count) return 1;
    qsort(shares, (size_t)count, sizeof *shares, ascending);
    return (shares[(count - 1) / 2] + shares[count / 2]) / 2;
}

static double larger(double a, double b) { return a > b ? a : b; }

static struct look look(int shares) {
    struct core_reading core = read_core();
    struct look seen = {core.shortest, core.mean, shares ? read_memory() : 0};
    note(&sentinels[CORE], seen.core);
    if (shares) note(&sentinels[MEMORY], seen.memory);
    return seen;
}

/* How far the core is from its reference (1: just near enough to be measured at it). */
static double core_distance(double reading) {
    double slower = reading / sentinels[CORE].reference;
    return larger(slower / SLOWEST_CORE, 1 / (slower * fastest_core));
}

/* How far a group between two looks is from what is tolerated (1: just tolerated). */
static double disturbance(struct look before, struct look after, int shares) {
    const struct sentinel *core = &sentinels[CORE], *memory = &sentinels[MEMORY];
    double change = larger(before.core / after.core, after.core / before.core);
    double distance = core_distance(larger(before.core, after.core));
    double worst = larger(change / (1 + core->tolerance), distance);
    if (!shares) return worst;
    double best = memory->best;
    if (memory->reference > 0 && memory->reference < best) best = memory->reference;
    return larger(worst, larger(before.memory, after.memory) / (best * (1 + memory->tolerance)));
}

/* Whether a job may need more than the core's own cache: a network's weights are in its library. */
static int needs_shared(const struct job *job, size_t cache) {
    size_t bytes = 0;
    for (int k = 0; k < BUFFERS; k++) bytes += job->sizes[k];
    bytes *= sizeof(float);
    struct stat status;
    if (job->network && !stat(job->library, &status)) bytes += (size_t)status.st_size;
    return bytes > cache / 2;
}

/* How many calls have weights of their own. */
static int copies_of(const struct job *job) {
    size_t size = job->sizes[WEIGHTS];
    if (!flushed_floats || !size || size > ARENA_FLOATS) return 1;
    return (int)(ARENA_FLOATS / (size + LINE_FLOATS));
}

static const float *weights_of_call(const struct job *job, int call) {
    size_t stride = (job->sizes[WEIGHTS] / LINE_FLOATS + 1) * LINE_FLOATS;
    return buffers[WEIGHTS] + stride * (size_t)(call % copies_of(job));
}

static float read_floats(const float *from, size_t floats) {
    float sum = 0;
    for (size_t i = 0; i < floats; i += LINE_FLOATS) sum += from[i];
    return sum;
}

/* The lines of which a thread has the share, from and to. */
struct lines {
    size_t first, last;
};

static struct lines share_of(size_t floats, int part, const struct pool_call *call) {
    size_t lines = (floats + LINE_FLOATS - 1) / LINE_FLOATS, parts = (size_t)call->parts;
    return (struct lines){lines * (size_t)part / parts, lines * ((size_t)part + 1) / parts};
}

/* Write a thread's share, one float of each line. */
static void write_share(float *to, size_t floats, int part, const struct pool_call *call) {
    struct lines share = share_of(floats, part, call);
    for (size_t line = share.first; line < share.last; line++) {
        volatile float *one_of_line = to + line * LINE_FLOATS;
        *one_of_line = *one_of_line;
    }
}

/* Read each thread's share of the output; returns what that took, to the first thread. */
static double hand_over(const struct job *job, int part, struct pool_call *call) {
    struct lines share = share_of(job->sizes[OUTPUT], part, call);
    pool_barrier(call);
    double start = part == 0 ? now_ns() : 0;
    sink = read_floats(buffers[OUTPUT] + share.first * LINE_FLOATS, (share.last - share.first) * LINE_FLOATS);
    pool_barrier(call);
    return part == 0 ? now_ns() - start : 0;
}

/* More code and data than first-level caches hold, out of the next one. */
enum { FOREIGN_FLOATS = 1 << 15 };
static float foreign[FOREIGN_FLOATS];

static void run_foreign_code(void) {
#if defined(__x86_64__)
    __asm__ volatile(".rept 8192\n .byte 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0\n .endr"); /* nop, 8 bytes */
#elif defined(__riscv)
    __asm__ volatile(".option push\n .option norvc\n .rept 16384\n nop\n .endr\n .option pop");
#else
    __asm__ volatile(".rept 16384\n nop\n .endr");
#endif
}

struct calls {
    const struct job *job;
    int count;
    double ns; /* inside the kernel */
};

static double clock_reading_ns; /* what a look at the clock takes */

static void compute(void *argument, int part, struct pool_call *call) {
    struct calls *calls = argument;
    const struct job *job = calls->job;
    int first = pool_share(job->tasks, part, call), last = pool_share(job->tasks, part + 1, call);
    float *other = buffers[OTHER] + job->scratch * (size_t)part;
    FRAME_AT_PAGE;
    for (int i = 0; i < calls->count; i++) {
        run_foreign_code();
        sink = read_floats(foreign, FOREIGN_FLOATS);
        if (call->parts > 1) {
            write_share(buffers[INPUT], job->sizes[INPUT], part, call);
            write_share(buffers[OUTPUT], job->sizes[OUTPUT], part, call);
            if (!job->scratch) write_share(buffers[OTHER], job->sizes[OTHER], part, call);
        } else {
            sink = read_floats(buffers[INPUT], job->sizes[INPUT]);
        }
        pool_barrier(call);
        double start = part == 0 ? now_ns() : 0;
        if (job->tasks > 1 || part == 0)
            job->kernel(buffers[INPUT], weights_of_call(job, i), buffers[BIAS], other,
                        buffers[OUTPUT], job->tasks > 1 ? first : 0, job->tasks > 1 ? last : 1);
        pool_barrier(call);
        if (part == 0) calls->ns += now_ns() - start - clock_reading_ns;
        if (call->parts > 1) {
            double first_ns = hand_over(job, part, call), again_ns = hand_over(job, part, call);
            if (part == 0) calls->ns += first_ns - again_ns;
        }
    }
}

static double *step_ns; /* of the latest runs of a network with probes, all together */

static double run_probed(const struct job *job, int inner) {
    double whole = 0;
    for (int step = 0; step < job->steps; step++) step_ns[step] = 0;
    for (int i = 0; i < inner; i++) {
        job->network(buffers[INPUT], buffers[OUTPUT], buffers[OTHER]);
        const double *moments = job->moments();
        for (int step = 0; step < job->steps; step++)
            step_ns[step] += moments[step + 1] - moments[step] - clock_reading_ns;
    }
    for (int step = 0; step < job->steps; step++) {
        if (step_ns[step] < 1) step_ns[step] = 1;
        whole += step_ns[step];
    }
    return whole;
}

/* Run a job so many times; returns what that took, without what comes between calls of a kernel. */
static double run_job(const struct job *job, int inner) {
    if (!job->network) {
        struct calls calls = {job, inner, 0};
        pool_run(compute, &calls, threads);
        return calls.ns > 1 ? calls.ns : 1;
    }
    if (job->steps) return run_probed(job, inner);
    double start = now_ns();
    for (int i = 0; i < inner; i++) job->network(buffers[INPUT], buffers[OUTPUT], buffers[OTHER]);
    return now_ns() - start;
}

static void find_clock_reading(void) {
    clock_reading_ns = 1e9;
    for (int i = 0; i < 1000; i++) {
        double start = now_ns(), passed = now_ns() - start;
        if (passed < clock_reading_ns) clock_reading_ns = passed;
    }
}

/* A network runs several times before it is timed: after others it takes some runs until its own data
 * are in the core's own cache as they are where it runs alone. Long ones do not fit into it. One of
 * several threads runs until those of the network before, or of the sentinels, sleep: they spin for a
 * while after their last call, on the same cores. */
enum { MOST_PREPARING = 4 };
static const double PREPARING_NS = 8e6, SPINNING_NS = 1.5e6;
static int preparing_runs(const struct job *job) {
    double runs = job->network ? PREPARING_NS * job->inner / job->expected_ns : 1;
    return runs < 1 ? 1 : runs > MOST_PREPARING ? MOST_PREPARING : (int)runs;
}

/* Bring code and data into the caches as far as they will be there in the network. */
static void prepare(const struct job *job) {
    int inner = job->inner;
    double least_ns = job->network && threads > 1 ? SPINNING_NS : 0, begin = now_ns();
    for (int runs = preparing_runs(job); runs > 0 || now_ns() - begin < least_ns; runs--) run_job(job, 1);
    if (!flushed_floats || job->network || !job->sizes[WEIGHTS]) return;
    float sum = 0;
    for (int call = 0; call < inner && call < copies_of(job); call++)
        sum += read_floats(weights_of_call(job, call), job->sizes[WEIGHTS]);
    sum += read_floats(stream, flushed_floats);
    sink = sum + read_floats(buffers[INPUT], job->sizes[INPUT]);
}

static uint64_t state = 1;
static uint32_t random_bits(void) { /* xorshift64*: Vigna, ACM TOMS 42(4), 2016 */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ULL) >> 32);
}

static void *memory_of(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) {
        puts("fatal out of memory");
        exit(3);
    }
    return memory;
}

/* Put a sample of a disturbed group aside, in the place of the worst one when there are so many. */
static void put_aside(struct job *job, double *sample, double disturbed, int most) {
    int place = job->aside_count;
    if (place == most) {
        place = 0;
        for (int i = 1; i < most; i++)
            if (job->aside[i].disturbance > job->aside[place].disturbance) place = i;
        if (job->aside[place].disturbance <= disturbed) return;
    } else {
        job->aside[job->aside_count++].sample = memory_of(sizeof(double) * row_of(job));
    }
    memcpy(job->aside[place].sample, sample, sizeof(double) * row_of(job));
    job->aside[place].disturbance = disturbed;
}

static void keep_sample(struct job *job, const double *sample) {
    memcpy(job->samples + row_of(job) * (size_t)job->count++, sample, sizeof(double) * row_of(job));
}

/* Print a column of a job's rows of samples. */
static void print_samples(const struct job *job, size_t column, double given_at) {
    for (int k = 0; k < job->count; k++)
        printf(" %.3f", job->samples[row_of(job) * (size_t)k + column] / given_at);
    putchar('\n');
}

static int calmer(const void *left, const void *right) {
    double a = ((const struct aside *)left)->disturbance, b = ((const struct aside *)right)->disturbance;
    return (a > b) - (a < b);
}

/* Fill up what is missing with the calmest of what was put aside; returns how many those are. */
static long fill_up(struct job *job, int rounds) {
    long filled = 0;
    qsort(job->aside, (size_t)job->aside_count, sizeof *job->aside, calmer);
    while (job->count < rounds && filled < job->aside_count)
        keep_sample(job, job->aside[filled++].sample);
    return filled;
}

static const float SCALES[BUFFERS] = {1.0f, 0.05f, 0.1f, 1.0f, 1.0f};

/* Allocate buffers of so many floats and fill them with random values of their scale. */
static void allocate(const size_t floats[BUFFERS], float *allocated[BUFFERS]) {
    for (int k = 0; k < BUFFERS; k++) {
        size_t bytes = (floats[k] * sizeof(float) + 4096 + 63) / 64 * 64;
        if (posix_memalign((void **)&allocated[k], 4096, bytes)) {
            puts("fatal out of memory");
            exit(3);
        }
        for (size_t i = 0; i < bytes / sizeof(float); i++)
            allocated[k][i] = SCALES[k] * ((float)(random_bits() % 2048) / 1024.0f - 1.0f);
    }
}

/* An emulator of single programs answers for the program in /proc/self, not in /proc/thread-self. */
static int is_emulated(void) {
    char self[4096] = {0}, thread[4096] = {0};
    return readlink("/proc/self/exe", self, sizeof self - 1) > 0 &&
           readlink("/proc/thread-self/exe", thread, sizeof thread - 1) > 0 && strcmp(self, thread);
}

static void parse_kernel(const char *line, struct job *job) {
    sscanf(line, "%*s %zu %zu %zu %zu %zu %zu %d %127s %4095[^\n]", &job->sizes[INPUT],
           &job->sizes[WEIGHTS], &job->sizes[BIAS], &job->sizes[OTHER], &job->sizes[OUTPUT],
           &job->scratch, &job->tasks, job->symbol, job->library);
    if (job->scratch) job->sizes[OTHER] = job->scratch * (size_t)threads;
}

enum { ANCHOR = -1 }; /* its number */

static int load(struct job *job, int number) {
    void *library = dlopen(job->library, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, job->symbol) : NULL;
    if (!symbol) {
        const char *reason = dlerror();
        printf("error %d %s\n", number, reason ? reason : "symbol missing");
        return -1;
    }
    if (job->network) {
        size_t (*floats)(void) = (size_t(*)(void))dlsym(library, "bignas_input_floats");
        size_t (*outputs)(void) = (size_t(*)(void))dlsym(library, "bignas_output_floats");
        size_t (*bytes)(void) = (size_t(*)(void))dlsym(library, "bignas_workspace_bytes");
        if (!floats || !outputs || !bytes) {
            printf("error %d not a network library\n", number);
            return -1;
        }
        job->network = (network_fn)symbol;
        job->sizes[INPUT] = floats();
        job->sizes[OTHER] = bytes() / sizeof(float);
        job->sizes[OUTPUT] = outputs();
        size_t (*probes)(void) = (size_t(*)(void))dlsym(library, "bignas_probe_count");
        job->moments = (moments_fn)dlsym(library, "bignas_probe_moments");
        job->steps = probes && job->moments ? (int)probes() - 1 : 0;
    } else {
        job->kernel = (kernel_fn)symbol;
    }
    return 0;
}

/* How many calls of a job make a sample, from a run of some: kernels spend most time between calls. */
static int calls_of_sample(const struct job *job, int tried, double sample_ns) {
    double begin = now_ns(), inside = run_job(job, tried), passed = now_ns() - begin;
    double wanted = tried * sample_ns / inside, bound = tried * MOST_BETWEEN * sample_ns / passed;
    double calls = (wanted < bound ? wanted : bound) + 1;
    return calls > MOST_CALLS ? MOST_CALLS : (int)calls;
}

/* Load the anchor and find how many calls of it make a reading. */
static int load_anchor(void) {
    if (load(&anchor, ANCHOR)) return -1;
    size_t floats[BUFFERS];
    memcpy(floats, anchor.sizes, sizeof floats);
    floats[OUTPUT] *= (size_t)threads;
    allocate(floats, anchor_buffers);
    struct core_reading once;
    read_core_of_thread(&once, 0, NULL);
    anchor_calls = once.shortest < ANCHOR_NS ? (int)(ANCHOR_NS / once.shortest) + 1 : 1;
    return 0;
}

/* The cores to run on. This thread keeps to the first; those of pools take over the mask under which they
 * are started, the others. Two of them on one core wait for each other by slices of milliseconds. */
static int cores[CPU_SETSIZE], cpus;

static void stay_on(int first, int last) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = first; i < last; i++) CPU_SET(cores[i], &set);
    if (first < last) sched_setaffinity(0, sizeof set, &set);
}

static void nothing(void *argument, int part, struct pool_call *call) {
    (void)argument, (void)part, (void)call;
}

/* The first call of a job or of our own pool, in which threads are started. */
static void start_job(const struct job *job) {
    int apart = threads > 1 && cpus >= threads;
    if (apart) stay_on(1, cpus);
    if (job) run_job(job, 1);
    else pool_run(nothing, NULL, threads);
    if (apart) stay_on(0, 1);
}

int main(void) {
    struct job *jobs = NULL;
    int count = 0, cpu, rounds = 10, seed = 1;
    size_t flush = 0, cache = 0;
    double sample_ns = 50000, find_ns = 1e9;
    char line[8192], word[32];
    if (is_emulated()) {
        puts("emulated");
        return 3;
    }
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%31s", word) == 1) {
        if (!strcmp(word, "run")) break;
        if (!strcmp(word, "cpu")) {
            if (sscanf(line, "%*s %d", &cpu) == 1 && cpu >= 0 && cpus < CPU_SETSIZE) cores[cpus++] = cpu;
        } else if (!strcmp(word, "threads")) sscanf(line, "%*s %d", &threads);
        else if (!strcmp(word, "cache")) sscanf(line, "%*s %zu", &cache);
        else if (!strcmp(word, "flush")) sscanf(line, "%*s %zu", &flush);
        else if (!strcmp(word, "rounds")) sscanf(line, "%*s %d", &rounds);
        else if (!strcmp(word, "sample_ns")) sscanf(line, "%*s %lf", &sample_ns);
        else if (!strcmp(word, "find_ns")) sscanf(line, "%*s %lf", &find_ns);
        else if (!strcmp(word, "core"))
            sscanf(line, "%*s %lf %lf %lf", &sentinels[CORE].tolerance, &sentinels[CORE].reference,
                   &fastest_core);
        else if (!strcmp(word, "memory"))
            sscanf(line, "%*s %lf %lf", &sentinels[MEMORY].tolerance, &sentinels[MEMORY].reference);
        else if (!strcmp(word, "seed")) sscanf(line, "%*s %d", &seed);
        else if (!strcmp(word, "anchor")) parse_kernel(line, &anchor);
        else {
            jobs = realloc(jobs, (size_t)(count + 1) * sizeof *jobs);
            struct job *job = &jobs[count++];
            memset(job, 0, sizeof *job);
            if (!strcmp(word, "network")) {
                job->network = (network_fn)(uintptr_t)1; /* replaced when the library is loaded */
                sscanf(line, "%*s %4095[^\n]", job->library);
                strcpy(job->symbol, "bignas_run");
            } else {
                parse_kernel(line, job);
            }
        }
    }
    stay_on(0, cpus);
    find_clock_reading();
    for (int i = 0; i < FOREIGN_FLOATS; i++) foreign[i] = 0.001f * (float)(i % 7);
    state += (uint64_t)seed * 7919;

    size_t largest[BUFFERS] = {0};
    int usable = 0, most_steps = 0;
    int *order = malloc(sizeof(int) * (size_t)(count + 1));
    for (int i = 0; i < count; i++) {
        if (load(&jobs[i], i)) continue;
        order[usable++] = i;
        jobs[i].shares = flush || needs_shared(&jobs[i], cache);
        if (jobs[i].steps > most_steps) most_steps = jobs[i].steps;
        for (int k = 0; k < BUFFERS; k++)
            if (jobs[i].sizes[k] > largest[k]) largest[k] = jobs[i].sizes[k];
    }
    flushed_floats = flush / sizeof(float);
    if (flushed_floats && largest[WEIGHTS] < ARENA_FLOATS) largest[WEIGHTS] = ARENA_FLOATS;
    windows = OWN_CACHES * cache / (WINDOW_FLOATS * sizeof(float)) + 1;
    size_t streamed = WINDOW_FLOATS * windows;
    if (streamed < flushed_floats) streamed = flushed_floats;
    stream = calloc(streamed, sizeof(float));
    if (!stream) {
        puts("fatal out of memory");
        return 3;
    }
    for (size_t i = 0; i < streamed; i++) stream[i] = 0.001f * (float)(i % 7);
    allocate(largest, buffers);
    step_ns = memory_of(sizeof *step_ns * (size_t)(most_steps + 1));

    start_job(NULL);
    for (int k = 0; k < usable; k++) { /* first calls: a crash is blamed on the job named last */
        struct job *job = &jobs[order[k]];
        printf("start %d\n", order[k]);
        fflush(stdout);
        start_job(job);
        job->inner = calls_of_sample(job, 1, sample_ns);
        job->inner = calls_of_sample(job, job->inner, sample_ns);
        if (flushed_floats && !job->network && job->inner > copies_of(job))
            job->inner = copies_of(job);
        double begin = now_ns();
        run_job(job, job->inner);
        job->expected_ns = now_ns() - begin;
        job->samples = memory_of(sizeof(double) * row_of(job) * (size_t)rounds);
        job->latest = memory_of(sizeof(double) * row_of(job));
        job->aside = memory_of(sizeof *job->aside * (size_t)rounds);
    }
    say("started");
    if (anchor.tasks && usable && load_anchor()) return 3;

    /* what the sentinels can do while the jobs run: many processors lower the clock for wide vectors */
    int known = sentinels[CORE].reference > 0;
    double warm_ns = 0, begin = now_ns();
    for (int i = 0; usable && (known ? i < WARM_UPS && (i < WARM_UPS / 4 || warm_ns < WARM_NS)
                                     : i < WARM_UPS || now_ns() - begin < find_ns); i++) {
        const struct job *job = &jobs[order[i % usable]];
        warm_ns += run_job(job, job->inner);
        if (i >= WARM_UPS / 8) look(1);
        if (i % 1000 == 999) say("finding");
    }
    if (!known) sentinels[CORE].reference = sentinels[CORE].best;

    long measured = 0, rejected = 0, unsettled = 0;
    int *visited = malloc(sizeof(int) * (size_t)(count + 1)), least_count = 0;
    double longest_ns = WAIT_NS;
    for (int k = 0; k < usable; k++) longest_ns += WAIT_TIMES * rounds * jobs[order[k]].expected_ns;
    begin = now_ns();
    for (int round = 0; usable && round < LAPS * rounds && least_count < rounds; round++) {
        if (now_ns() - begin > longest_ns && round >= rounds) break;
        block = round < rounds ? round * BLOCKS / rounds : block;
        int visits = 0;
        for (int k = 0; k < usable; k++)
            if (jobs[order[k]].count < rounds) visited[visits++] = order[k];
        for (int k = visits - 1; k > 0; k--) {
            int other = (int)(random_bits() % (uint32_t)(k + 1)), kept = visited[k];
            visited[k] = visited[other];
            visited[other] = kept;
        }
        for (int first = 0; first < visits;) {
            int last = first, shares = 0;
            double planned = 0;
            while (last < visits && last - first < GROUP && (planned < GROUP_NS || last == first)) {
                shares |= jobs[visited[last]].shares;
                planned += jobs[visited[last++]].expected_ns;
            }
            for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
                struct look before = look(shares);
                for (int k = first; k < last; k++) {
                    struct job *job = &jobs[visited[k]];
                    prepare(job);
                    job->latest[0] = run_job(job, job->inner) / job->inner;
                    for (int step = 0; step < job->steps; step++)
                        job->latest[1 + step] = step_ns[step] / job->inner;
                }
                struct look after = look(shares);
                double disturbed = disturbance(before, after, shares);
                double slower = (before.core + after.core) / 2 / sentinels[CORE].reference;
                for (int k = first; k < last; k++) {
                    struct job *job = &jobs[visited[k]];
                    for (size_t column = 0; column < row_of(job); column++) job->latest[column] /= slower;
                    if (disturbed <= 1) keep_sample(job, job->latest);
                    else put_aside(job, job->latest, disturbed, rounds);
                }
                if (disturbed <= 1) {
                    count_stalls(before);
                    count_stalls(after);
                    break;
                }
                rejected++;
            }
            first = last;
        }
        int least = rounds;
        for (int k = 0; k < usable; k++)
            if (jobs[order[k]].count < least) least = jobs[order[k]].count;
        for (; least_count < least; least_count++) printf("round %d %ld\n", least_count + 1, rejected);
        say("alive");
    }
    for (int k = 0; k < usable; k++) {
        unsettled += fill_up(&jobs[order[k]], rounds);
        measured += jobs[order[k]].count;
    }

    /* the reference is what the anchor takes with its share of stalls */
    double stalls = stalls_of_blocks();
    if (stalls > MOST_STALLS) {
        stalls = MOST_STALLS;
        unsettled = measured;
    }
    double given_at = known ? stalls : 1;
    for (int i = 0; i < count; i++) {
        if (!jobs[i].count) continue;
        printf("samples %d", i);
        print_samples(&jobs[i], 0, given_at);
        for (int step = 0; step < jobs[i].steps; step++) {
            printf("steps %d %d", i, step);
            print_samples(&jobs[i], (size_t)step + 1, given_at);
        }
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    /* the reference is that of all measurements so far: what takes its place is a core that is faster, or
     * one that never came near it, if that lasts (latency/sentinels.py) */
    const struct sentinel *core = &sentinels[CORE];
    int far = core->reference / core->best > fastest_core ||
              (unsettled == measured && core->best / core->reference > SLOWEST_CORE);
    double core_ns = far ? core->best * stalls : core->reference * (known ? 1 : stalls);
    printf("done %.1f %.1f %ld %ld %ld %ld\n", core_ns, sentinels[MEMORY].best, measured, rejected,
           unsettled, usage.ru_nvcsw + usage.ru_nivcsw);
    return 0;
}
