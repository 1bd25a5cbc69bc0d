#define _GNU_SOURCE
#include "failure.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

bool failure_from_event(const struct tcpevent_event *event, struct failure *failure)
{
    if (event->kind != TCPEVENT_KIND_CLOSE || (event->flags & TCPEVENT_FLAG_FAILED) == 0)
        return false;
    memset(failure, 0, sizeof *failure);
    failure->time_ns = event->time_ns;
    failure->age_ns = event->age_ns;
    failure->error = event->error;
    failure->given_up = (event->flags & TCPEVENT_FLAG_GIVEN_UP) != 0;
    failure->unknown = error_is_unknown(event);
    failure->family = event->family;
    failure->port = event->remote_port;
    memcpy(failure->address, event->remote_addr, sizeof failure->address);
    failure->pid = event->pid;
    failure->uid = event->uid;
    memcpy(failure->comm, event->comm, sizeof failure->comm);
    return true;
}

bool error_is_unknown(const struct tcpevent_event *event)
{
    return (event->known & TCPEVENT_KNOWN_ERROR) == 0;
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
    /* The network's answers to a SYN (kernel: tcp_v4_err, icmp_err_convert, tcp_v6_err, tab_unreach). */
    static const struct {
        int error;
        const char *words;
    } usual[] = {
        {ECONNREFUSED, "connection refused"},
        {ETIMEDOUT, "timed out"},
        {ECONNRESET, "reset"},
        {EHOSTUNREACH, "no route to host"},
        {ENETUNREACH, "network unreachable"},
        {EHOSTDOWN, "host is down"},
        {ENETDOWN, "network is down"},
        {EACCES, "prohibited by a router or firewall"},
        {ECONNABORTED, "aborted on this host"},
        {ENOPROTOOPT, "no TCP at the destination"},
    };
    const char *words = NULL;

    /* Checked first: a program that gives up has no error, or that of an ICMP message which the kernel did not take
     * for final. */
    if (failure->given_up) {
        put_format(text, "given up by the program after %.3f s", (double)failure->age_ns / 1e9);
        return;
    }
    if (failure->unknown) {
        put(text, "reason unknown");
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

void put_endpoint(struct text *text, uint16_t family, const uint8_t address[16], uint16_t port)
{
    char string[INET6_ADDRSTRLEN];
    bool is_ipv6 = family == AF_INET6;

    tcpevent_format_address(family, address, string, sizeof string);
    put_format(text, "%s%s%s:%u", is_ipv6 ? "[" : "", string, is_ipv6 ? "]" : "", port);
}

void put_destination(struct text *text, const struct failure *failure)
{
    put_endpoint(text, failure->family, failure->address, failure->port);
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
