/* failures.c - prints the connections that could not be established, until Ctrl-C. */
#include <stdio.h>
#include <string.h>

#include "tcpevent.h"

static const char *reason(const struct tcpevent_event *event)
{
    if (event->flags & TCPEVENT_FLAG_GIVEN_UP)
        return "the program gave up";
    if (!(event->known & TCPEVENT_KNOWN_ERROR))
        return "unknown reason";
    return event->error != 0 ? strerror(event->error) : "no local port was free";
}

int main(void)
{
    struct tcpevent_options options = {.size = sizeof options, .filter = "failed"};
    struct tcpevent_event event;
    struct tcpevent_watch *watch;

    if (tcpevent_open(&options, &watch) < 0) {
        fprintf(stderr, "failures: %s\n", tcpevent_last_error());
        return 1;
    }
    while (tcpevent_read(watch, &event, sizeof event, 1, -1) == 1) {
        char address[46];

        tcpevent_format_address(event.family, event.remote_addr, address, sizeof address);
        printf("pid %u could not connect to %s port %u: %s, after %.1f ms\n", event.pid, address, event.remote_port,
               reason(&event), (double)event.age_ns / 1e6);
        fflush(stdout);
    }
    fprintf(stderr, "failures: %s\n", tcpevent_last_error());
    return 1;
}
