#include "record.h"

#include <inttypes.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

/* null without an error, and a word if it is unknown. */
static void put_json_error(struct text *text, int error, bool unknown)
{
    if (unknown) {
        put(text, "\"unknown\"");
        return;
    }
    if (error == 0) {
        put(text, "null");
        return;
    }
    put(text, "\"");
    put_error_name(text, error);
    put(text, "\"");
}

/* null if the kernel did not report it: 0 would be a value. */
static void put_number(struct text *text, const char *name, bool known, uint64_t number)
{
    if (known)
        put_format(text, ",\"%s\":%" PRIu64, name, number);
    else
        put_format(text, ",\"%s\":null", name);
}

/* null of a failed attempt, and if it is unknown. */
static void put_ending(struct text *text, uint8_t ending)
{
    if (ending == TCPEVENT_ENDING_UNKNOWN)
        put(text, ",\"ending\":null");
    else
        put_format(text, ",\"ending\":\"%s\"", tcpevent_ending_name(ending));
}

static const char *boolean(bool value)
{
    return value ? "true" : "false";
}

static void put_state_json(struct text *text, const struct tcpevent_event *event, const char *local, const char *remote)
{
    put(text, "{\"time\":\"");
    put_time(text, event->time_ns);
    put_format(text, "\",\"time_ns\":%" PRIu64 ",\"kind\":\"state\",\"pid\":%" PRIu32, event->time_ns, event->pid);
    put_number(text, "uid", (event->known & TCPEVENT_KNOWN_UID) != 0, event->uid);
    put(text, ",\"comm\":");
    put_json(text, event->comm, sizeof event->comm);
    put_format(text,
               ",\"old_state\":\"%s\",\"new_state\":\"%s\",\"family\":%d,\"local_addr\":\"%s\",\"local_port\":%u,"
               "\"remote_addr\":\"%s\",\"remote_port\":%u,\"cookie\":%" PRIu64,
               tcpevent_state_name(event->old_state), tcpevent_state_name(event->new_state),
               event->family == AF_INET6 ? 6 : 4, local, event->local_port, remote, event->remote_port, event->cookie);
    if (event->kind == TCPEVENT_KIND_CLOSE) {
        bool counted = (event->known & TCPEVENT_KNOWN_COUNTERS) != 0;

        put_format(text, ",\"age_ms\":%.3f", (double)event->age_ns / 1e6);
        put_number(text, "payload_sent", counted, event->payload_sent);
        put_number(text, "payload_received", counted, event->payload_received);
        put_number(text, "bytes_retransmitted", counted, event->bytes_retransmitted);
        put(text, ",\"error\":");
        put_json_error(text, event->error, error_is_unknown(event));
        put_format(text, ",\"failed\":%s,\"given_up\":%s", boolean((event->flags & TCPEVENT_FLAG_FAILED) != 0),
                   boolean((event->flags & TCPEVENT_FLAG_GIVEN_UP) != 0));
        put_ending(text, event->ending);
    }
    put(text, "}\n");
}

void put_state_record(struct text *text, const struct tcpevent_event *event, bool json)
{
    char local[INET6_ADDRSTRLEN];
    char remote[INET6_ADDRSTRLEN];

    tcpevent_format_address(event->family, event->local_addr, local, sizeof local);
    tcpevent_format_address(event->family, event->remote_addr, remote, sizeof remote);
    if (json) {
        put_state_json(text, event, local, remote);
        return;
    }
    put_time(text, event->time_ns);
    put_format(text, " %6" PRIu32 " %-15s %-15s %-15s %6u %6u\n", event->pid, tcpevent_state_name(event->new_state),
               local, remote, event->local_port, event->remote_port);
}

void put_failure_record(struct text *text, const struct failure *failure, bool json)
{
    if (json) {
        char address[INET6_ADDRSTRLEN];

        tcpevent_format_address(failure->family, failure->address, address, sizeof address);
        put(text, "{\"time\":\"");
        put_time(text, failure->time_ns);
        put_format(text, "\",\"kind\":\"failure\",\"remote_addr\":\"%s\",\"remote_port\":%u,\"reason\":\"", address,
                   failure->port);
        put_reason(text, failure); /* words of ASCII letters, nothing to escape */
        put(text, "\",\"error\":");
        put_json_error(text, failure->error, failure->unknown);
        put_format(text, ",\"pid\":%" PRIu32 ",\"comm\":", failure->pid);
        put_json(text, failure->comm, sizeof failure->comm);
        put(text, "}\n");
        return;
    }
    put_time(text, failure->time_ns);
    put(text, " WARNING ");
    put_failure(text, failure);
    put(text, "\n");
}

void put_notice_record(struct text *text, uint64_t time_ns, bool warning, const char *notice, bool json)
{
    if (json) {
        put(text, "{\"time\":\"");
        put_time(text, time_ns);
        put_format(text, "\",\"kind\":\"%s\",\"text\":", warning ? "warning" : "notice");
        put_json(text, notice, RECORD_NOTICE_SIZE);
        put(text, "}\n");
        return;
    }
    put_time(text, time_ns);
    put(text, warning ? " WARNING " : " NOTICE ");
    put_printable(text, notice, RECORD_NOTICE_SIZE, "");
    put(text, "\n");
}
