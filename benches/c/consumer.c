/* consumer - a host of the library that only counts the events, as commanded on stdin.
 *
 *   load PATH            dlopen; "loaded"
 *   start                AddProbe; "started MILLISECONDS" when getStatus() is 1
 *   consume PORT         a thread takes events from now on, and counts those of that local or remote port, and the
 *                        others; "consuming"
 *   counts               "counts OF_PORT OTHERS", so far
 *   latency              "latency COUNT P50 P99 MAX": from EventTime until DequeuePerfEvent returned, in ns, for the
 *                        port's events since the last such line
 *   first                takes one event in the main thread, which starts the snapshots; "first"
 *   stop                 cleanup(); "stopped" when the library's threads have ended
 *   drain COUNT THREADS  takes COUNT events, each thread its share; "drained COUNT SECONDS"
 *
 * Ends at the end of stdin.
 */
#define _GNU_SOURCE
#include "basics.h"
#include "event.h"

#include <dirent.h>
#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

static struct {
    void (*AddProbe)(const char *program);
    unsigned (*getStatus)(void);
    struct tcp_event_t (*DequeuePerfEvent)(void);
    void (*cleanup)(void);
} library;

static void resolve(void *handle, const char *name, void *function, size_t size)
{
    void *symbol = dlsym(handle, name);

    if (symbol == NULL) {
        fprintf(stderr, "consumer: the library has no symbol %s: is it libtcpEvent.so?\n", name);
        exit(1);
    }
    /* ISO C has no cast from an object pointer to a function pointer; POSIX guarantees the same bits. */
    memcpy(function, &symbol, size);
}

static void load(const char *path)
{
    void *handle = dlopen(path, RTLD_NOW);

    if (handle == NULL) {
        fprintf(stderr, "consumer: cannot load the library: %s; run make\n", dlerror());
        exit(1);
    }
#define RESOLVE(name) resolve(handle, #name, &library.name, sizeof library.name)
    RESOLVE(AddProbe);
    RESOLVE(getStatus);
    RESOLVE(DequeuePerfEvent);
    RESOLVE(cleanup);
#undef RESOLVE
    puts("loaded");
}

static void start(void)
{
    const struct timespec pause = {.tv_nsec = 50 * 1000};
    uint64_t began = now_ns(CLOCK_MONOTONIC);

    library.AddProbe(NULL);
    while (library.getStatus() == 0)
        nanosleep(&pause, NULL);
    printf("started %.3f\n", (double)(now_ns(CLOCK_MONOTONIC) - began) / 1e6);
}

/* ---- Latencies ---------------------------------------------------------------------------------------------- */

/* Each power of two has 64 buckets: a value is exact to 1.6 %. */
enum { STEP_BITS = 6, STEPS = 1 << STEP_BITS, BUCKETS = (64 - STEP_BITS + 1) * STEPS };

static _Atomic uint64_t latencies[BUCKETS];
static _Atomic uint64_t longest;

static size_t bucket_of(uint64_t value)
{
    int shift = 0;

    if (value >= STEPS)
        shift = 63 - __builtin_clzll(value) - STEP_BITS;
    return (size_t)shift * STEPS + (size_t)(value >> shift);
}

/* The least value beyond this bucket. */
static uint64_t end_of(size_t bucket)
{
    size_t shift = bucket < 2 * STEPS ? 0 : bucket / STEPS - 1;

    return (bucket - shift * STEPS + 1) << shift;
}

/* Only one thread writes: no need for a locked instruction at each event. */
static void count_up(_Atomic uint64_t *counter)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1, memory_order_relaxed);
}

static uint64_t percentile(const uint64_t *counts, uint64_t total, unsigned percent)
{
    uint64_t rank = (total * percent + 99) / 100;
    uint64_t passed = 0;

    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        passed += counts[bucket];
        if (passed >= rank && passed > 0)
            return end_of(bucket);
    }
    return 0;
}

static void print_latency(void)
{
    static uint64_t counts[BUCKETS];
    uint64_t total = 0;

    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        counts[bucket] = atomic_exchange(&latencies[bucket], 0);
        total += counts[bucket];
    }
    printf("latency %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", total, percentile(counts, total, 50),
           percentile(counts, total, 99), atomic_exchange(&longest, 0));
}

/* ---- Events ------------------------------------------------------------------------------------------------- */

static _Atomic uint64_t of_port;
static _Atomic uint64_t others;

static void *consume(void *argument)
{
    unsigned port = *(unsigned *)argument;

    for (;;) {
        struct tcp_event_t event = library.DequeuePerfEvent();
        uint64_t now = now_ns(CLOCK_REALTIME);
        uint64_t latency = now > event.EventTime ? now - event.EventTime : 0;

        if (event.SPT != port && event.DPT != port) {
            count_up(&others);
            continue;
        }
        count_up(&latencies[bucket_of(latency)]);
        if (latency > atomic_load_explicit(&longest, memory_order_relaxed))
            atomic_store_explicit(&longest, latency, memory_order_relaxed);
        count_up(&of_port);
    }
    return NULL;
}

static void start_consuming(unsigned given)
{
    static unsigned port;
    pthread_t thread;

    port = given;
    errno = pthread_create(&thread, NULL, consume, &port);
    if (errno != 0)
        die("cannot start a thread", "see ulimit -u");
    pthread_detach(thread);
    puts("consuming");
}

/* ---- The speed of DequeuePerfEvent alone -------------------------------------------------------------------- */

struct share {
    pthread_t thread;
    uint64_t count;
    uint64_t ended_ns;
};

static pthread_barrier_t all_ready;

static void *take_share(void *argument)
{
    struct share *share = argument;

    pthread_barrier_wait(&all_ready);
    for (uint64_t i = 0; i < share->count; i++)
        (void)library.DequeuePerfEvent();
    share->ended_ns = now_ns(CLOCK_MONOTONIC);
    return NULL;
}

static void drain(uint64_t count, unsigned threads)
{
    struct share *shares = calloc(threads, sizeof *shares);
    uint64_t began;
    uint64_t ended = 0;

    if (shares == NULL)
        die("no memory", "use fewer threads");
    pthread_barrier_init(&all_ready, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        shares[i].count = count / threads + (i < count % threads);
        errno = pthread_create(&shares[i].thread, NULL, take_share, &shares[i]);
        if (errno != 0)
            die("cannot start a thread", "see ulimit -u");
    }
    /* Before the barrier: the threads may finish before this one runs again. */
    began = now_ns(CLOCK_MONOTONIC);
    pthread_barrier_wait(&all_ready);
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(shares[i].thread, NULL);
        if (shares[i].ended_ns > ended)
            ended = shares[i].ended_ns;
    }
    pthread_barrier_destroy(&all_ready);
    free(shares);
    printf("drained %" PRIu64 " %.9f\n", count, (double)(ended - began) / 1e9);
}

/* ---- The end ------------------------------------------------------------------------------------------------ */

static bool library_has_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    bool has = false;

    if (tasks == NULL)
        die("cannot read /proc/self/task", "is /proc mounted?");
    for (struct dirent *task = readdir(tasks); task != NULL && !has; task = readdir(tasks)) {
        char path[320];
        char name[32] = "";
        FILE *file;

        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        file = fopen(path, "r");
        if (file == NULL)
            continue;
        has = fgets(name, sizeof name, file) != NULL && strncmp(name, "tcpevent-", 9) == 0;
        fclose(file);
    }
    closedir(tasks);
    return has;
}

static void stop(void)
{
    const struct timespec pause = {.tv_nsec = 1000 * 1000};

    library.cleanup();
    while (library_has_threads())
        nanosleep(&pause, NULL);
    puts("stopped");
}

int main(void)
{
    char line[4096];

    live_with_parent();
    while (fgets(line, sizeof line, stdin) != NULL) {
        char path[4096];
        uint64_t count;
        unsigned number;

        if (sscanf(line, "load %4095[^\n]", path) == 1)
            load(path);
        else if (strcmp(line, "start\n") == 0)
            start();
        else if (sscanf(line, "consume %u", &number) == 1)
            start_consuming(number);
        else if (strcmp(line, "counts\n") == 0)
            printf("counts %" PRIu64 " %" PRIu64 "\n", atomic_load(&of_port), atomic_load(&others));
        else if (strcmp(line, "latency\n") == 0)
            print_latency();
        else if (strcmp(line, "first\n") == 0) {
            (void)library.DequeuePerfEvent();
            puts("first");
        } else if (strcmp(line, "stop\n") == 0)
            stop();
        else if (sscanf(line, "drain %" SCNu64 " %u", &count, &number) == 2 && number > 0)
            drain(count, number);
        else
            printf("not understood: %s", line);
        fflush(stdout);
    }
    return 0;
}
