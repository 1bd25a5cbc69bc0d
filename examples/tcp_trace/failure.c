#define _GNU_SOURCE
#include "failure.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

bool failure_from_event(const struct tcpevent_event *event, struct failure *failure)
{
    if (event->kind != TCPEVENT_KIND_CLOSE || (event->flags & TCPEVENT_FAILED) == 0)
        return false;
    memset(failure, 0, sizeof *failure);
    failure->time_ns = event->time_ns;
    failure->age_ns = event->age_ns;
    failure->error = event->error;
    failure->given_up = (event->flags & TCPEVENT_GIVEN_UP) != 0;
    failure->port = event->remote_port;
    failure->pid = event->pid;
    memcpy(failure->comm, event->comm, sizeof failure->comm);
    tcpevent_format_address(event->family, event->remote_addr, failure->address, sizeof failure->address);
    return true;
}

void put_error_name(struct text *text, int error)
{
    const char *name = strerrorname_np(error);

    if (name != NULL)
        put(text, name);
    else
        put_format(text, "errno %d", error);
}

void put_reason(struct text *text, const struct failure *failure)
{
    /* What the network answers to a SYN (kernel: tcp_v4_err, icmp_err_convert, tcp_v6_err, tab_unreach). */
    static const struct {
        int error;
        const char *words;
    } usual[] = {
        {ECONNREFUSED, "connection refused"},   {ETIMEDOUT, "timed out"},
        {ECONNRESET, "reset"},                  {EHOSTUNREACH, "no route to host"},
        {ENETUNREACH, "network unreachable"},   {EHOSTDOWN, "host is down"},
        {ENETDOWN, "network is down"},          {EACCES, "prohibited by a router or firewall"},
        {ECONNABORTED, "aborted on this host"}, {ENOPROTOOPT, "no TCP at the destination"},
    };
    const char *words = NULL;

    /* Before the error: a program that gives up has none, or that of an ICMP message which the kernel did not take for
     * final. */
    if (failure->given_up) {
        put_format(text, "given up by the program after %.3f s", (double)failure->age_ns / 1e9);
        return;
    }
    if (failure->error == 0) {
        put(text, "could not be started");
        return;
    }
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++)
        if (usual[i].error == failure->error)
            words = usual[i].words;
    if (words == NULL)
        words = strerrordesc_np(failure->error);
    put(text, words != NULL ? words : "unknown error");
    put(text, " (");
    put_error_name(text, failure->error);
    put(text, ")");
}

void put_destination(struct text *text, const struct failure *failure)
{
    bool colons = strchr(failure->address, ':') != NULL;

    put_format(text, "%s%s%s:%u", colons ? "[" : "", failure->address, colons ? "]" : "", failure->port);
}

void put_command(struct text *text, const char comm[16])
{
    put_printable(text, comm, 16, "\"\\");
}

void put_failure(struct text *text, const struct failure *failure)
{
    put(text, "TCP failure detected: ");
    put_destination(text, failure);
    put(text, " (");
    put_reason(text, failure);
    put_format(text, "; pid %" PRIu32 ", command ", failure->pid);
    put_command(text, failure->comm);
    put(text, ")");
}
