/* dlopen.c - loads libtcpEvent.so at run time, and prints each event as a line of JSON, until Ctrl-C:
 * dlopen [PATH OF THE LIBRARY] */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "event.h"

static void (*add_probe)(const char *program);
static unsigned (*get_status)(void);
static struct tcp_event_t (*dequeue)(void);

static void find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    if (symbol == NULL) {
        fprintf(stderr, "dlopen: no symbol %s: is this libtcpEvent.so?\n", name);
        exit(1);
    }
    /* ISO C cannot cast an object pointer to a function pointer; POSIX says that the bits are the same. */
    memcpy(function, &symbol, sizeof symbol);
}

/* A name may hold any bytes, also half a character. Each byte that is not printable ASCII becomes the code point of the
 * same number: the line is always valid JSON, and Latin-1 gives the bytes back. */
static void print_text(const char *key, const char *text, const char *end)
{
    printf("\"%s\":\"", key);
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;

        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else
            printf(byte < 0x20 || byte >= 0x7f ? "\\u%04x" : "%c", byte);
    }
    printf("\"%s", end);
}

static void print(const struct tcp_event_t *event)
{
    printf("{\"EventTime\":%" PRIu64 ",\"pid\":%" PRIu32 ",\"UserId\":%" PRIu32 ",", event->EventTime, event->pid,
           event->UserId);
    printf("\"rx_b\":%" PRIu64 ",\"tx_b\":%" PRIu64 ",", event->rx_b, event->tx_b);
    printf("\"tcpi_segs_out\":%" PRIu32 ",\"tcpi_segs_in\":%" PRIu32 ",", event->tcpi_segs_out, event->tcpi_segs_in);
    printf("\"family\":%u,\"SPT\":%u,\"DPT\":%u,", event->family, event->SPT, event->DPT);
    print_text("task", event->task, ",");
    print_text("SADDR", event->SADDR, ",");
    print_text("DADDR", event->DADDR, "}\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    void *library = dlopen(argc > 1 ? argv[1] : "/opt/RealTimeKql/lib/libtcpEvent.so", RTLD_NOW);

    if (library == NULL) {
        fprintf(stderr, "dlopen: cannot load the library: %s\n", dlerror());
        return 1;
    }
    find(library, "AddProbe", &add_probe);
    find(library, "getStatus", &get_status);
    find(library, "DequeuePerfEvent", &dequeue);

    add_probe(NULL);
    while (get_status() == 0)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    for (;;) {
        struct tcp_event_t event = dequeue();

        print(&event);
    }
}
