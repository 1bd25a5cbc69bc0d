/* A connection that was never established, and its description in the log and for Slack. */
#ifndef FAILURE_H
#define FAILURE_H

#include <stdbool.h>
#include <stdint.h>

#include "tcpevent.h"
#include "text.h"

struct failure {
    uint64_t time_ns;
    uint64_t age_ns; /* since connect was called */
    int error;       /* errno; 0 without an answer, without a SYN, or if unknown */
    bool given_up;   /* by the program, before anything answered */
    bool unknown;    /* the error is unknown, as with a plain tracepoint */
    uint16_t family;
    uint16_t port;
    uint8_t address[16];
    uint32_t pid;
    uint32_t uid;
    char comm[16];
};

/* Fills `failure` if the event is the end of such a connection. Returns whether it is. */
bool failure_from_event(const struct tcpevent_event *event, struct failure *failure);

/* "connection refused (ECONNREFUSED)" */
void put_reason(struct text *text, const struct failure *failure);

/* "192.0.2.7:443", "[2001:db8::7]:443" */
void put_endpoint(struct text *text, uint16_t family, const uint8_t address[16], uint16_t port);
void put_destination(struct text *text, const struct failure *failure);

/* "TCP failure detected: 192.0.2.7:443 (connection refused (ECONNREFUSED); pid 4711, command curl)" */
void put_failure(struct text *text, const struct failure *failure);

/* The command, made safe for a line of text. */
void put_command(struct text *text, const char comm[16]);

/* Whether the event's `error` is 0 because it is unknown. */
bool error_is_unknown(const struct tcpevent_event *event);

/* "ECONNREFUSED"; for an errno without a name, "errno 999". */
void put_error_name(struct text *text, int error);

#endif
