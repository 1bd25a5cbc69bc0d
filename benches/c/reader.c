/* reader - a host of the handle API that only counts the events, as commanded on stdin.
 *
 *   open EVENTS PROBE FILTER...   tcpevent_open, and a thread that reads 64 at a time; "opened", or the error
 *   counts                        "counts EVENTS", so far
 *
 * Ends at the end of stdin. Linked with the library.
 */
#define _GNU_SOURCE
#include "basics.h"
#include "tcpevent.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

static struct tcpevent_watch *watch;
static _Atomic uint64_t events_read;

static void *read_all(void *unused)
{
    static struct tcpevent_event events[64];
    int count;

    while ((count = tcpevent_read(watch, events, sizeof events[0], 64, -1)) >= 0 || count == -EINTR) {
        if (count > 0)
            atomic_fetch_add(&events_read, (uint64_t)count);
    }
    return unused;
}

static void open_watch(unsigned events, unsigned probe, const char *filter)
{
    struct tcpevent_options options = {
        .size = sizeof options, .events = events, .probe = probe, .queue_slots = 65536, .filter = filter};
    pthread_t thread;

    if (tcpevent_open(&options, &watch) < 0) {
        fprintf(stderr, "reader: %s\n", tcpevent_last_error());
        exit(1);
    }
    if (pthread_create(&thread, NULL, read_all, NULL) != 0)
        die("no thread", "are there too many?");
    puts("opened");
}

int main(void)
{
    char line[256];

    live_with_parent();
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned events, probe;
        int at = 0;

        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "open %u %u%n", &events, &probe, &at) == 2 && at > 0)
            open_watch(events, probe, line + at);
        else if (strcmp(line, "counts") == 0)
            printf("counts %" PRIu64 "\n", atomic_load(&events_read));
        else {
            fprintf(stderr, "reader: not a command: %s\n", line);
            return 1;
        }
    }
    return 0;
}
