/* epoll.c - follows the state of every connection in an event loop, which also waits for Ctrl-C. */
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "tcpevent.h"

static void print(const struct tcpevent_event *event)
{
    char local[46], remote[46];

    tcpevent_format_address(event->family, event->local_addr, local, sizeof local);
    tcpevent_format_address(event->family, event->remote_addr, remote, sizeof remote);
    printf("socket %" PRIu64 ", pid %u: %s:%u -> %s:%u %s to %s\n", event->cookie, event->pid, local, event->local_port,
           remote, event->remote_port, tcpevent_state_name(event->old_state), tcpevent_state_name(event->new_state));
}

/* Reads until the queue is empty, without waiting. Returns 0, or a negative errno. */
static int drain(struct tcpevent_watch *watch)
{
    struct tcpevent_event events[64];
    int count;

    while ((count = tcpevent_read(watch, events, sizeof *events, 64, 0)) > 0) {
        for (int i = 0; i < count; i++)
            print(&events[i]);
    }
    fflush(stdout);
    return count;
}

int main(void)
{
    struct tcpevent_options options = {.size = sizeof options, .events = TCPEVENT_EVENTS_STATES};
    struct tcpevent_statistics statistics = {.size = sizeof statistics};
    struct epoll_event wanted = {.events = EPOLLIN}, ready;
    struct tcpevent_watch *watch;
    sigset_t stop;
    int loop = epoll_create1(EPOLL_CLOEXEC), stops, error = 0;

    /* Blocked before the library starts its threads. */
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    stops = signalfd(-1, &stop, SFD_CLOEXEC);
    if (tcpevent_open(&options, &watch) < 0) {
        fprintf(stderr, "epoll: %s\n", tcpevent_last_error());
        return 1;
    }
    wanted.data.fd = stops;
    epoll_ctl(loop, EPOLL_CTL_ADD, stops, &wanted);
    wanted.data.fd = tcpevent_fd(watch);
    epoll_ctl(loop, EPOLL_CTL_ADD, tcpevent_fd(watch), &wanted);

    for (bool stopping = false; !stopping && error == 0;) {
        if (epoll_wait(loop, &ready, 1, -1) < 1)
            continue;
        stopping = ready.data.fd == stops;
        error = drain(watch);
    }
    if (error < 0)
        fprintf(stderr, "epoll: %s\n", tcpevent_last_error());
    tcpevent_get_statistics(watch, &statistics);
    fprintf(stderr, "epoll: %" PRIu64 " events, %" PRIu64 " lost\n", statistics.delivered,
            statistics.lost_records + statistics.shed_states + statistics.undecoded);
    tcpevent_close(watch);
    return error < 0;
}
