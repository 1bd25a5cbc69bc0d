/* classic.c - prints each event of the six classic functions, until Ctrl-C. It compiles as C and as C++. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "event.h"

/* cleanup() may be called in a signal handler, even one that interrupts DequeuePerfEvent(). */
static void stop(int signal_number)
{
    (void)signal_number;
    cleanup();
    _exit(0);
}

/* A process chooses its own name: escape sequences must not reach the terminal. */
static void print_name(const char *name)
{
    for (; *name != '\0'; name++)
        printf(*name < ' ' || *name > '~' || *name == '\\' ? "\\x%02x" : "%c", (unsigned char)*name);
}

int main(void)
{
    signal(SIGINT, stop);
    AddProbe(NULL);
    while (getStatus() == 0)
        usleep(10000);
    for (;;) {
        struct tcp_event_t event = DequeuePerfEvent();

        print_name(event.task);
        printf("[%" PRIu32 "] %s:%u -> %s:%u  received %" PRIu64 ", sent %" PRIu64 "\n", event.pid, event.SADDR,
               event.SPT, event.DADDR, event.DPT, event.rx_b, event.tx_b);
        fflush(stdout);
    }
}
